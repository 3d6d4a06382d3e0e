# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Choice of the anomalous images that join the training images, and changes of repeated ones, without datasets."""

import math
import random
from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd

MAX_ANGLE = 3.0  # degrees; both limits are those of the SoftPatch+ authors (official issue 14)
MAX_SHIFT = 0.03  # fraction of the image's width or height

NOISE_COLUMNS = ("image_path", "repeat", "angle", "shift_x", "shift_y")


def select_noise(paths: Sequence[str], count: int, seed: int) -> pd.DataFrame:
    """Choose the images to inject.

    All images are put into a random order, and the first ``count`` of them are chosen. The order starts again when it
    is used up. The choice depends only on the arguments, and not on the order of ``paths``. A smaller ``count`` gives
    the first rows of a larger one. Python guarantees that ``random.Random(seed).random()`` gives the same numbers in
    every version and on every platform.

    Args:
        paths: Paths of the anomalous images, relative to the dataset's root, with ``/`` as separator.
        count: Number of images to choose.
        seed: Seed of the choice, 0 or more.

    Returns:
        One row per chosen image with the columns ``image_path``, ``repeat`` (0 for the original image, then 1, 2, ...),
        ``angle`` (degrees, counter-clockwise), ``shift_x`` and ``shift_y`` (fractions of the width and the height, to
        the right and down). Angle and shifts are 0 if ``repeat`` is 0.

    Raises:
        ValueError: If ``count`` is not 0 and there are no images.
    """
    if count and not paths:
        msg = f"count={count} images should be chosen, but there is no anomalous image to choose from."
        raise ValueError(msg)
    generator = random.Random(seed)
    order = sorted(sorted(paths), key=lambda _: generator.random())
    rows = []
    for number in range(count):
        repeat, index = divmod(number, len(order))
        # Drawn in the order of injection, so that a longer list starts like a shorter one, and rounded, so that a
        # manifest reproduces the numbers
        angle, shift_x, shift_y = (
            (
                round(generator.uniform(-MAX_ANGLE, MAX_ANGLE), 3),
                round(generator.uniform(-MAX_SHIFT, MAX_SHIFT), 5),
                round(generator.uniform(-MAX_SHIFT, MAX_SHIFT), 5),
            )
            if repeat
            else (0.0, 0.0, 0.0)
        )
        rows.append((order[index], repeat, angle, shift_x, shift_y))
    return pd.DataFrame(rows, columns=list(NOISE_COLUMNS))


def rotate_and_shift(
    image: np.ndarray, angle: float, shift_x: float, shift_y: float, *, is_mask: bool = False
) -> np.ndarray:
    """Rotate an image about its center, then shift it. New areas at the edges mirror the image.

    Args:
        image: Image of shape ``(H, W, C)`` or mask of shape ``(H, W)``, ``uint8``.
        angle: Angle in degrees, counter-clockwise.
        shift_x: Shift to the right, as a fraction of the width.
        shift_y: Shift down, as a fraction of the height.
        is_mask: Take the nearest pixel, which keeps the values of a mask, instead of linear interpolation.

    Returns:
        Image of the same shape and type.
    """
    height, width = image.shape[:2]
    transform = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale=1.0)
    transform[:, 2] += (shift_x * width, shift_y * height)
    return cv2.warpAffine(
        image,
        transform,
        (width, height),
        flags=cv2.INTER_NEAREST if is_mask else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def largest_ratio(images: int, normal: int) -> float:
    """Return the largest ratio, rounded down to four digits, with ``int(ratio * normal) <= images``."""
    return math.floor(10_000 * images / normal) / 10_000
