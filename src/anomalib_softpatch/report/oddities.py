# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Oddities: images that, unlike the rest of the set, are dark, light, blurry, empty, colorless, or of another size.

What is usual differs from set to set. So an image is odd if it lies far from the median of the set, and by an amount
that matters, or if nothing can be seen in it.
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
MATTERS = 0.5  # smallest difference that matters, as a share of the usual brightness, darkness, sharpness or entropy
OTHER_ASPECT = 1.1  # smallest factor between unusual and usual width over height, or its inverse
BLACK, WHITE, FLAT = 0.05, 0.95, 0.5  # limits in any set: of brightest value, darkest value, and entropy in bits
SMALLEST_CONTRAST = 1 / 255
STATISTICS_SIDE = 256  # shorter side, in pixels, at which sharpness is measured because it depends on the scale


@dataclass(frozen=True)
class ImageStatistics:
    """Measurements that oddities are found by.

    Sharpness is the standard deviation of the Laplacian of the brightness, divided by that of the brightness, so that
    low contrast does not count as blur.
    """

    width: int  # pixels
    height: int
    darkest: float  # brightness that 5 % of the pixels are below, in [0, 1]
    brightest: float  # brightness that 5 % of the pixels are above, in [0, 1]
    sharpness: float
    entropy: float  # of the histogram of the brightness in 256 steps, in bits
    color: float  # mean difference between the largest and the smallest channel, in [0, 1]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height


def image_statistics(image: torch.Tensor) -> ImageStatistics:
    """Measure an image of shape ``(3, height, width)`` with values in [0, 1]."""
    height, width = image.shape[1:]
    color = (image.amax(dim=0) - image.amin(dim=0)).mean().item()
    if min(height, width) > STATISTICS_SIDE:
        image = resize(image, [STATISTICS_SIDE], antialias=True)
    gray = rgb_to_grayscale(image)[0].numpy()
    laplacian = laplace(gray)[1:-1, 1:-1]  # without the border, where it depends on padding
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
    """Name the oddities of each image of a set.

    Returns:
        For each image, those that apply of ``dark``, ``light``, ``blurry``, ``low information``, ``odd size``,
        ``odd aspect`` and ``gray among color``.
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
    """Return which values lie below the median by many median absolute deviations and by at least the difference."""
    limit = max(DEVIATIONS * median_abs_deviation(values, scale="normal"), difference)
    return values < values.median() - limit
