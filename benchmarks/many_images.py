# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""Cost of `clean-train` on thousands of images: processor time and memory of each stage, including the report's.

The images are random windows of a set's training images, half as high and wide, flipped at random, with noise, so that
any number of different images can be made. Each number of images runs in its own process, in folders that are removed
afterwards.

Example::

    python benchmarks/many_images.py --counts 1000 10000 100000 --image-size 64 --save docs/results/many_images.json
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from anomalib_softpatch.cleaning import stages as cleaning
from anomalib_softpatch.cleaning.command import clean_train
from anomalib_softpatch.components import memory_bank
from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel
from anomalib_softpatch.report import ranking
from common import PeakMemory, accuracy_parser, describe_machine, in_process, print_table, save_results
from results import Rows

Stages = dict[str, dict[str, float]]
NOISE = 6.0  # standard deviation, of values up to 255
KEYS = ("seconds", "gib")
# Module or class and name of the function of each stage, and what the stage is
STAGES: tuple[tuple[Any, str, str], ...] = (
    (ranking.Reader, "read", "report: features"),
    (ranking, "duplicate_groups", "report: copies"),
    (ranking, "score_patches", "report: noise scores"),
    (cleaning, "write_report", "report: page"),
    (SoftPatchModel, "forward", "fit: features (of the cache)"),
    (memory_bank, "duplicate_groups", "fit: copies"),
    (memory_bank, "score_patches", "fit: noise scores"),
    (memory_bank, "k_center_greedy", "fit: coreset"),
    (memory_bank, "find_support", "fit: support radii"),
    (memory_bank, "calibrate", "fit: scale of the radii"),
    (SoftPatchModel, "_score_out_of_bag", "fit: out-of-bag scores, self-check"),
)


def make_folder(folder: Path, images: list[Path], count: int, size: int) -> None:
    """Write images.

    Args:
        folder: Empty folder.
        images: Images to cut windows from.
        count: Number of images to write.
        size: Height and width of the images in pixels.
    """
    sources = [Image.open(path).convert("RGB") for path in images]
    for number in range(count):
        generator = np.random.default_rng(number)
        source = sources[number % len(sources)]
        width, height = source.width // 2, source.height // 2
        left, top = (int(generator.integers(0, room)) for room in (source.width - width, source.height - height))
        part = source.resize((size, size), box=(left, top, left + width, top + height))
        pixels = np.asarray(part, dtype=np.float32)[:, :: generator.choice([-1, 1])]
        pixels = (pixels + generator.normal(0, NOISE, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=92)


def run(options: argparse.Namespace, count: int) -> Stages:
    """Train on ``count`` images; return processor time in seconds and peak memory in GiB of each stage."""
    stages: Stages = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary, ExitStack() as stack:
        folder, output = Path(temporary, "images"), Path(temporary, "trained")
        folder.mkdir()
        sources = sorted(Path(options.root, options.sets[0], "train", "good").iterdir())
        make_folder(folder, sources, count, options.image_size)
        for place, name, label in STAGES:
            stack.enter_context(patch.object(place, name, timed(getattr(place, name), label, stages)))
        with taking("all", stages):
            clean_train(
                folder,
                output,
                extraction=Extraction(options.backbone, options.layers, options.image_size),
                model_options={"coreset_sampling_ratio": options.coreset},
                export="none",
            )
        parts = [stage["seconds"] for label, stage in stages.items() if label != "all"]
        stages["rest"] = {"seconds": stages["all"]["seconds"] - sum(parts), "gib": stages["all"]["gib"]}
        (page,) = (output / "report").glob("*.html")
        sizes = ", ".join(
            f"{file.name} {file.stat().st_size / 2**20:.1f} MiB" for file in (page, output / "model.ckpt")
        )
        print(f"# {count} images: {sizes}", flush=True)
    return stages


def timed(function: Callable, label: str, stages: Stages) -> Callable:
    """Return a function that does the same, and adds its time and memory to a stage."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with taking(label, stages):
            return function(*arguments, **options)

    return call


@contextmanager
def taking(label: str, stages: Stages) -> Iterator[None]:
    """Add the time and memory of a block to a stage."""
    stage = stages.setdefault(label, {"seconds": 0.0, "gib": 0.0})
    start = time.process_time()
    with PeakMemory(interval=0.05) as memory:
        yield
    stage["seconds"] += time.process_time() - start
    stage["gib"] = max(stage["gib"], memory.highest / 2**30)


def main() -> None:
    """Measure all numbers of images, and print the table."""
    parser = accuracy_parser(__doc__, ratios=[], sets=["kolektor"])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000, 100000], help="numbers of images")
    parser.add_argument("--folder", type=Path, help="where images and features are written (default: the system's)")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    headings = ["processor time [s] / memory [GiB]", *(f"{count:,} images" for count in options.counts)]
    title = (
        f"clean-train on many images of {options.image_size} x {options.image_size} pixels: "
        f"{options.backbone.rpartition('/')[2]}, coreset {options.coreset}"
    )
    rows: Rows = {}
    for column, count in enumerate(options.counts):
        for label, figures in in_process(options.threads, run, options, count).items():
            rows.setdefault(label, [[] for _ in options.counts])[column].append(figures)
        save_results(options.save, title, headings, rows, KEYS)
        print_table(headings, rows, KEYS)


if __name__ == "__main__":
    main()
