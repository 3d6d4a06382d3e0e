# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch verify``: check that an exported file decides on this machine as its model did."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from anomalib_softpatch.images.finding import find_images
from anomalib_softpatch.images.reading import UnreadableImageError, read_image
from anomalib_softpatch.predictions.runtimes import Output, Runtime, load_runtime
from anomalib_softpatch.text import first_line

logger = logging.getLogger(__name__)

# Largest difference of normalized scores. Float32 runtimes stay far below it; a resize without antialiasing exceeds it
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """How predictions of the same images differ."""

    images: int  # number of images
    difference: float  # largest difference of an image's two scores
    flips: int  # number of images whose verdicts differ
    milliseconds: float  # median time per image

    @property
    def alike(self) -> bool:
        """Whether the verdicts are the same and the scores differ by no more than :data:`TOLERANCE`."""
        return not self.flips and self.difference <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.images} images, scores differ by up to {self.difference:.2g}, {self.flips} verdicts differ, "
            f"{self.milliseconds:.0f} ms per image"
        )


def verify(file: Path, images: Path | None = None) -> None:
    """Report whether an exported file gives the verdicts of the model that it was exported from on this machine.

    The file describes golden images and stores the model's scores and verdicts for them. It is run in float32, and
    also in the data type that the runtime chooses, if that is another one. The exit status is 2 if a verdict or a score
    differs in float32.

    Args:
        file: Exported file (.onnx or .xml).
        images: Folder of images, or one image, on which the runtime's own data type is compared with float32.
    """
    exact, chosen = load_runtime(file), load_runtime(file, exact=False)
    comparison = compare_golden(exact)
    sys.stdout.write(f"{exact.name}, float32, against the model: {comparison}\n")
    if chosen.precision != exact.precision:
        sys.stdout.write(f"{chosen.name}, {chosen.precision}, against the model: {compare_golden(chosen)}\n")
    if images is not None:
        sys.stdout.write(
            f"{chosen.name}, {chosen.precision}, against float32: {_compare_folder(exact, chosen, images)}\n"
        )
    if not comparison.alike:
        msg = f"{file} does not decide on this machine as the model did. Export it again, or run another runtime."
        raise ValueError(msg)


def check_file(file: Path) -> None:
    """Compare a file that has just been exported with its model, and log the result."""
    try:
        runtime = load_runtime(file)
        comparison = compare_golden(runtime)
    except Exception as error:  # whatever a runtime raises: the file exists, and may be meant for another runtime
        logger.warning("%s was not compared with the model: %s", file, error)
        return
    level = logging.INFO if comparison.alike else logging.WARNING
    logger.log(level, "%s in %s against the model: %s.", file, runtime.name, comparison)


def compare_golden(runtime: Runtime) -> Comparison:
    """Compare a file's predictions for its golden images with those of the model.

    Raises:
        ValueError: If the file holds no golden images.
    """
    golden = runtime.metadata.golden
    if not golden:
        msg = "The file holds no golden images: export it again with this version of anomalib-softpatch."
        raise ValueError(msg)
    found, times = [], []
    for image in golden:
        pixels = image.pixels()
        runtime.predict(pixels)  # not timed: runtimes need longer for the first image of a size
        start = perf_counter()
        found.append(runtime.predict(pixels))
        times.append(perf_counter() - start)
    return _compare(found, [(image.score, image.anomalous) for image in golden], times)


def _compare_folder(exact: Runtime, chosen: Runtime, images: Path) -> Comparison:
    paths, skipped = ([images], []) if images.is_file() else find_images(images)
    found, expected, times = [], [], []
    for path in paths:
        try:
            pixels, _ = read_image(path, exact.metadata.largest_value)
        except UnreadableImageError as error:
            skipped.append((str(path), str(error)))
            continue
        try:
            reference = exact.predict(pixels[None])
            start = perf_counter()
            prediction = chosen.predict(pixels[None])
            times.append(perf_counter() - start)
        except Exception as error:  # for example, the file takes another image size; the runtimes raise their own types
            skipped.append((str(path), f"cannot be scored: {first_line(error)}"))
            continue
        expected.append((reference.score, reference.label))
        found.append(prediction)
    for name, reason in skipped:
        sys.stderr.write(f"skipped {name}: {reason}\n")
    if not found:
        msg = f"{images} holds no image that can be scored."
        raise ValueError(msg)
    return _compare(found, expected, times)


def _compare(
    found: Sequence[Output], expected: Sequence[tuple[float, bool | None]], times: Sequence[float]
) -> Comparison:
    pairs = list(zip(found, expected, strict=True))
    return Comparison(
        images=len(pairs),
        difference=float(np.max([abs(one.score - score) for one, (score, _) in pairs])),  # NaN stays NaN
        flips=sum(one.label != label for one, (_, label) in pairs),
        milliseconds=1000 * median(times),
    )
