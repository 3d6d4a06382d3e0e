# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The size that images are resized to: the number of pixels that a model is made for, in the images' own aspect ratio.

Torch is not imported here, because files are checked first.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_softpatch.images.reading import image_size
from anomalib_softpatch.options import SMALLEST_SIZE

SIDE = 256  # pixels of a square image's side, as in PatchCore and the papers
STEP = 16  # pixels that sides are multiples of: a patch of the coarser of the default's two layers
LIKE = 1.1  # aspect ratios count as equal if their quotient is not larger
MUCH_LARGER = 2.0  # times the side of the model's size: the user is warned of images from this size on
TILE, STRIDE = 512, 384  # pixels, of the tiles that are recommended


@dataclass(frozen=True)
class TypicalImage:
    """What images of a folder have in common."""

    height: int  # pixels, of an image of the median aspect ratio
    width: int
    images: int  # number of images whose size is known
    others: int  # number of these that have another aspect ratio

    @property
    def model_size(self) -> tuple[int, int]:
        """Height and width of about 256 x 256 pixels in this aspect ratio, multiples of 16; squares are 256 x 256."""
        sides = (SIDE * (self.height / self.width) ** 0.5, SIDE * (self.width / self.height) ** 0.5)
        height, width = (max(SMALLEST_SIZE, STEP * round(side / STEP)) for side in sides)
        return height, width

    def remarks(self, size: tuple[int, int], grid_size: Callable[[], tuple[int, int]], tiled: bool) -> list[str]:
        """Return lines on what a model misses in images that are resized to a height and width, and perhaps tiled.

        ``grid_size`` gives the height and width of the grid of patches. It is called only if they matter, because an
        image has to go through the backbone for them.
        """
        own = (self.height, self.width)
        factors = [whole / part for whole, part in zip(own, size, strict=True)]
        found = []
        if max(factors) >= MUCH_LARGER:
            patch = [max(1, round(whole / count)) for whole, count in zip(own, grid_size(), strict=True)]
            larger = [min(whole, 2 * part) for whole, part in zip(own, size, strict=True)]
            options = f"--image_size {larger[0]} {larger[1]}"
            if not tiled and min(own) >= TILE:
                options += f" or --tile {TILE} --stride {STRIDE}"
            found.append(
                f"Images of {described(own)} pixels (height x width) are resized to {described(size)}, "
                f"{factors[0]:.1f} and {factors[1]:.1f} times smaller: a defect below about {described(patch)} of "
                f"their pixels covers less than one patch and may vanish. If yours may be that small, use {options}."
            )
        if self.others:
            found.append(
                f"Images with another aspect ratio than {described(own)} (height x width) are distorted: "
                f"{self.others} of {self.images}."
            )
        return found


def choose_size(
    typical: TypicalImage,
    given: tuple[int, int] | None,
    tiled: bool,
    nearest_size: Callable[[int, int], tuple[int, int]],
) -> tuple[int, int]:
    """Choose the height and width in pixels that images are resized to: those that the user gave, if any.

    Otherwise, images that are cut into tiles keep their own size. Others get the size nearest to the model's that the
    backbone accepts (``nearest_size``).
    """
    if given is not None:
        return given
    return (typical.height, typical.width) if tiled else nearest_size(*typical.model_size)


def described(size: Sequence[int]) -> str:
    """Return a size as text, height first."""
    return f"{size[0]} x {size[1]}"


def typical_image(paths: Iterable[Path]) -> TypicalImage:
    """Look at the sizes of image files without decoding them. Broken files and other files are left out.

    Returns:
        The most common size among the images of the median aspect ratio; a square if no size is known.
    """
    sizes = Counter(size for path in paths if (size := _size_of(path)) is not None)
    if not sizes:
        return TypicalImage(SIDE, SIDE, 0, 0)
    ratios = {size: size[0] / size[1] for size in sizes}
    ordered = sorted(sizes.elements(), key=lambda size: ratios[size])
    ratio = ratios[ordered[(len(ordered) - 1) // 2]]
    height, width = max((size for size in sizes if ratios[size] == ratio), key=lambda size: (sizes[size], size))
    others = sum(count for size, count in sizes.items() if max(ratios[size] / ratio, ratio / ratios[size]) > LIKE)
    return TypicalImage(height, width, len(ordered), others)


def _size_of(path: Path) -> tuple[int, int] | None:
    """Return height and width of an image file, in pixels; ``None`` if they are unknown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on very large images, which are not decoded here
            width, height = image_size(path)
            return height, width
    except Exception:  # decoders may raise anything; reading the image later reports why
        return None
