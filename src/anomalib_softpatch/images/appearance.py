# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How images look as a whole: size, color and brightness, which show that images differ from the training images.

Torch is not imported, because that takes too long on machines that run exported files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from anomalib_softpatch.images.reading import displayed_size, header

FEWEST = 10  # images: the median of fewer is not reported
USUAL = 0.98  # share of the training images that the reported range covers
MATTERS = 0.02  # share of white, or of the usual width or height: a smaller difference is not reported
COLORED = 0.02  # mean difference between the largest and the smallest channel, above which an image has color
GRID = 16  # cells per side for the mean colors, which hardly depend on the size of the image
WHITE = 255
Quantiles: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Appearance:
    """How an image looks as a whole."""

    width: int  # pixels, as it is displayed
    height: int
    kind: str  # "gray, 8 bits", "color, 16 bits" and so on
    brightness: float  # mean of all values, scaled to 0 to 255 for any number of bits


def mean_colors(values: np.ndarray) -> np.ndarray:
    """Return the mean colors of the cells of a grid over an image of shape ``(3, height, width)``.

    Returns:
        Shape ``(3, rows, columns)``. Pixels at the right and bottom edges that do not fill a cell are left out.
    """
    _, height, width = values.shape
    rows, columns = min(GRID, height), min(GRID, width)
    high, wide = height // rows, width // columns
    cells = values[:, : rows * high, : columns * wide].reshape(3, rows, high, columns, wide)
    return cells.mean(axis=(2, 4))


def appearance(path: str | Path, colors: np.ndarray) -> Appearance:
    """Describe how an image looks, from the header of its file and its :func:`mean_colors`, without decoding it.

    Raises:
        OSError: If the file does not exist or is not an image.
    """
    with header(path) as image:
        width, height = displayed_size(image)
        mode = image.mode
    color = float((colors.max(axis=0) - colors.min(axis=0)).mean()) > COLORED
    depth = {"F": "floating-point", "I": "32 bits"}.get(mode, "16 bits" if mode.startswith("I;16") else "8 bits")
    return Appearance(width, height, f"{'color' if color else 'gray'}, {depth}", WHITE * float(colors.mean()))


@dataclass(frozen=True)
class UsualAppearance:
    """How a set of images looks: 1, 50 and 99 % quantiles, and the share of the images of each kind."""

    width: Quantiles
    height: Quantiles
    brightness: Quantiles
    kinds: Mapping[str, float]

    @classmethod
    def of(cls, images: Sequence[Appearance]) -> "UsualAppearance | None":
        """Summarize how images look; ``None`` for fewer than :data:`FEWEST`."""
        if len(images) < FEWEST:
            return None
        kinds = Counter(each.kind for each in images)
        return cls(
            _quantiles([each.width for each in images]),
            _quantiles([each.height for each in images]),
            _quantiles([each.brightness for each in images]),
            {kind: number / len(images) for kind, number in kinds.most_common()},
        )

    @classmethod
    def from_plain(cls, data: Mapping[str, Any] | None) -> "UsualAppearance | None":
        """Restore an instance from :func:`dataclasses.asdict`; ``None`` for no data."""
        if not data:
            return None
        width, height, brightness = (tuple(data[name]) for name in ("width", "height", "brightness"))
        return cls(width, height, brightness, dict(data["kinds"]))

    def remarks(self, images: Sequence[Appearance]) -> dict[str, str]:
        """Return a line for each way in which other images differ as a whole: ``"size"``, ``"kind"``, ``"brightness"``.

        Their median counts, so that a few different images do not matter. A median differs if it lies outside the
        range of 98 % of the usual images, and by more than a model ignores. There are no lines for fewer images than
        :data:`FEWEST`.
        """
        other = UsualAppearance.of(images)
        if other is None:
            return {}
        lines = {}
        if any(_differs(other, self, name, getattr(self, name)[1]) for name in ("width", "height")):
            lines["size"] = (
                f"These images have a different size than the training images: {_size(other)} pixels (width x height) "
                f"instead of {_size(self)} ({USUAL:.0%} of the training images are {_range(self.width)} pixels wide "
                f"and {_range(self.height)} high)."
            )
        kind, share = next(iter(other.kinds.items()))
        if share > 0.5 and self.kinds.get(kind, 0) <= 1 - USUAL:  # noqa: PLR2004
            usual, usual_share = next(iter(self.kinds.items()))
            lines["kind"] = (
                f"These images are of a different kind than the training images: {share:.0%} are {kind}. "
                f"{self.kinds.get(kind, 0):.0%} of the training images are ({usual_share:.0%} are {usual})."
            )
        if _differs(other, self, "brightness", WHITE):
            word = "darker" if other.brightness[1] < self.brightness[1] else "brighter"
            lines["brightness"] = (
                f"These images are {word} than the training images: mean brightness {other.brightness[1]:.0f} of "
                f"{WHITE} instead of {self.brightness[1]:.0f} ({USUAL:.0%} of the training images lie between "
                f"{self.brightness[0]:.0f} and {self.brightness[2]:.0f})."
            )
        return {name: line.replace("%", " %") for name, line in lines.items()}


def appearances_to_plain(images: Sequence[Appearance]) -> list[list[Any]]:
    """Return appearances as plain data."""
    return [list(astuple(each)) for each in images]


def appearances_from_plain(data: Sequence[Sequence[Any]]) -> tuple[Appearance, ...]:
    """Restore appearances from the plain data of :func:`appearances_to_plain`."""
    return tuple(Appearance(*each) for each in data)


def _quantiles(values: Sequence[float]) -> Quantiles:
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), [(1 - USUAL) / 2, 0.5, (1 + USUAL) / 2])
    return float(low), float(middle), float(high)


def _differs(other: UsualAppearance, usual: UsualAppearance, name: str, whole: float) -> bool:
    low, middle, high = getattr(usual, name)
    median = getattr(other, name)[1]
    return not low <= median <= high and abs(median - middle) > MATTERS * whole


def _size(images: UsualAppearance) -> str:
    return f"{images.width[1]:.0f} x {images.height[1]:.0f}"


def _range(quantiles: Quantiles) -> str:
    low, high = f"{quantiles[0]:.0f}", f"{quantiles[2]:.0f}"
    return low if low == high else f"{low} to {high}"
