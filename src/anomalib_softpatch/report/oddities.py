# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Oddities: images that are dark, light, blurry, empty, of another size or without color, unlike the rest of the set.

What is usual differs from set to set: parts on a black background are no dark images. So an image is odd if it lies
far from the median of the set, and by an amount that matters. Images that nobody could see anything in are odd
whatever the others look like.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import median_abs_deviation
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


def image_statistics(image: torch.Tensor) -> ImageStatistics:
    """Measure an image.

    Args:
        image: Shape ``(3, height, width)``, in [0, 1].

    Returns:
        Its statistics.
    """
    height, width = image.shape[1:]
    color = (image.amax(dim=0) - image.amin(dim=0)).mean().item()
    if min(height, width) > STATISTICS_SIDE:
        image = resize(image, [STATISTICS_SIDE], antialias=True)
    gray = rgb_to_grayscale(image)[0].numpy()
    laplacian = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    counts = np.bincount((gray * 255).round().astype(int).clip(0, 255).ravel())
    shares = counts[counts > 0] / counts.sum()
    darkest, brightest = np.quantile(gray, (0.05, 0.95))
    return ImageStatistics(
        width=width,
        height=height,
        darkest=float(darkest),
        brightest=float(brightest),
        sharpness=float(laplacian.std() / max(gray.std(), SMALLEST_CONTRAST)),
        entropy=float(-(shares * np.log2(shares)).sum()),
        color=color,
    )


def find_oddities(statistics: Sequence[ImageStatistics]) -> list[list[str]]:
    """Name what is odd about each image.

    Args:
        statistics: Those of all images of a set.

    Returns:
        For each image some of ``dark``, ``light``, ``blurry``, ``low information``, ``odd size``, ``odd aspect`` and
        ``gray among color``.
    """
    darkest, brightest, sharpness, entropy, color = (
        np.array([getattr(one, name) for one in statistics])
        for name in ("darkest", "brightest", "sharpness", "entropy", "color")
    )
    log_aspect = np.array([math.log(one.width / one.height) for one in statistics])
    sizes = [(one.width, one.height) for one in statistics]
    usual_size, usual_count = Counter(sizes).most_common(1)[0]
    found = {
        "dark": _far_below(brightest, MATTERS * np.median(brightest)) | (brightest < BLACK),
        "light": _far_below(1 - darkest, MATTERS * np.median(1 - darkest)) | (darkest > WHITE),
        "blurry": _far_below(sharpness, MATTERS * np.median(sharpness)) & (entropy >= FLAT),
        "low information": _far_below(entropy, MATTERS * np.median(entropy)) | (entropy < FLAT),
        "odd size": np.array([usual_count > len(sizes) / 2 and size != usual_size for size in sizes]),
        "odd aspect": _far_below(-np.abs(log_aspect - np.median(log_aspect)), math.log(OTHER_ASPECT)),
        "gray among color": (color < COLORED / 2) & (np.median(color) > COLORED),
    }
    return [[name for name, odd in found.items() if odd[index]] for index in range(len(statistics))]


def _far_below(values: np.ndarray, difference: float) -> np.ndarray:
    """Tell which values lie below the median by many median absolute deviations, and by a difference that matters."""
    limit = max(DEVIATIONS * float(median_abs_deviation(values, scale="normal")), float(difference))
    return values < np.median(values) - limit
