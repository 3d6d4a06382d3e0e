# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images of a noise report beside their heat maps."""

from dataclasses import astuple

from PIL import Image

from anomalib_softpatch.pages.drawing import TILE, draw_pair
from anomalib_softpatch.report.findings import Findings

# Of the heat maps' range of colors: the noisiest 1 / 10 ** COLOR_DECADES of all patches have the last color.
COLOR_DECADES = 3


def image_pair(findings: Findings, index: int, tile: int = TILE) -> Image.Image:
    """Draw an image beside itself under its heat map, where it is known with the outline of the anomaly in white.

    Args:
        findings: Findings of the set.
        index: Which image.
        tile: Side of the square that each of the two is fitted into, in pixels.

    Returns:
        Image of the size that :func:`~anomalib_softpatch.pages.drawing.draw_pair` gives.

    Raises:
        UnreadableImageError: If the file cannot be read any more.
    """
    truth = None if findings.true_patches is None else findings.true_patches[index]
    return draw_pair(
        findings.paths[index],
        findings.rarity[index] / COLOR_DECADES,
        astuple(findings.regions[index]),
        findings.largest_value,
        outlined=truth if truth is not None and truth.any() else None,
        tile=tile,
    )
