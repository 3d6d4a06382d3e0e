# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Oddities: images that are dark, light, blurry, empty, of another size or without color, unlike the rest of the set.

What is usual differs from set to set. So an image is odd if it lies far from the median of the set, and by an amount
that matters, or if nobody could see anything in it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import laplace
from scipy.stats import entropy, median_abs_deviation
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from anomalib_softpatch.images.appearance import COLORED

DEVIATIONS = 5.0  # scaled median absolute deviations from the median
MATTERS = 0.5  # share of the usual brightness, darkness, sharpness or entropy that is little
OTHER_ASPECT = 1.1  # times the usual width over height, or its inverse
BLACK, WHITE, FLAT = 0.05, 0.95, 0.5  # brightest and darkest value, entropy in bits, whatever is usual
SMALLEST_CONTRAST = 1 / 255
STATISTICS_SIDE = 256  # pixels of the shorter side that sharpness is measured at, as it depends on the scale


@dataclass(frozen=True)
class ImageStatistics:
    """What oddities are told by.

    Args:
        width: Pixels.
        height: Pixels.
        darkest: 5 % of the pixels are darker, in [0, 1].
        brightest: 5 % of the pixels are brighter, in [0, 1].
        sharpness: Standard deviation of the Laplacian of the brightness over that of the brightness, so that a lack of
            contrast is no blur, at a shorter side of 256 pixels.
        entropy: Of the histogram of the brightness in 256 steps, in bits.
        color: Mean difference between the largest and the smallest channel, in [0, 1].
    """

    width: int
    height: int
    darkest: float
    brightest: float
    sharpness: float
    entropy: float
    color: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height


def image_statistics(image: torch.Tensor) -> ImageStatistics:
    """Measure an image of shape ``(3, height, width)`` and values in [0, 1]."""
    height, width = image.shape[1:]
    color = (image.amax(dim=0) - image.amin(dim=0)).mean().item()
    if min(height, width) > STATISTICS_SIDE:
        image = resize(image, [STATISTICS_SIDE], antialias=True)
    gray = rgb_to_grayscale(image)[0].numpy()
    laplacian = laplace(gray)[1:-1, 1:-1]  # without the border, where it is made up
    counts = np.bincount((gray * 255).round().astype(int).clip(0, 255).ravel())
    darkest, brightest = np.quantile(gray, (0.05, 0.95))
    return ImageStatistics(
        width=width,
        height=height,
        darkest=float(darkest),
        brightest=float(brightest),
        sharpness=float(laplacian.std() / max(gray.std(), SMALLEST_CONTRAST)),
        entropy=float(entropy(counts, base=2)),
        color=color,
    )


def find_oddities(statistics: Sequence[ImageStatistics]) -> list[list[str]]:
    """Name what is odd about each image of a set.

    Returns:
        For each image some of ``dark``, ``light``, ``blurry``, ``low information``, ``odd size``, ``odd aspect`` and
        ``gray among color``.
    """
    table = pd.DataFrame(statistics)
    names = ["darkest", "brightest", "sharpness", "entropy"]
    darkest, brightest, sharpness, information = (table[name] for name in names)
    log_aspect = np.log(table["width"] / table["height"])
    sizes = [one.size for one in statistics]
    usual_size, usual_count = Counter(sizes).most_common(1)[0]
    found = {
        "dark": _far_below(brightest, MATTERS * brightest.median()) | (brightest < BLACK),
        "light": _far_below(1 - darkest, MATTERS * (1 - darkest).median()) | (darkest > WHITE),
        "blurry": _far_below(sharpness, MATTERS * sharpness.median()) & (information >= FLAT),
        "low information": _far_below(information, MATTERS * information.median()) | (information < FLAT),
        "odd size": [usual_count > len(sizes) / 2 and size != usual_size for size in sizes],
        "odd aspect": _far_below(-(log_aspect - log_aspect.median()).abs(), math.log(OTHER_ASPECT)),
        "gray among color": (table["color"] < COLORED / 2) & (table["color"].median() > COLORED),
    }
    return [[name for name, odd in found.items() if odd[index]] for index in range(len(statistics))]


def _far_below(values: pd.Series, difference: float) -> pd.Series:
    """Tell which values lie below the median by many median absolute deviations, and by a difference that matters."""
    limit = max(DEVIATIONS * median_abs_deviation(values, scale="normal"), difference)
    return values < values.median() - limit
