# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images of a noise report beside their heat maps."""

from dataclasses import astuple

from PIL import Image, ImageDraw

from anomalib_softpatch.images.reading import read_part
from anomalib_softpatch.pages.drawing import GAP, draw_pair
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.image_scores import peaks

COLOR_DECADES = 3  # the noisiest 1 / 10 ** COLOR_DECADES of all patches have the last color of the heat maps
PART, AROUND = 112, 7  # side of the square around a patch, in pixels and in patches


def nearest_patches(findings: Findings, index: int) -> Image.Image:
    """Draw the most suspicious patch of an image and, beside it, the nearest patches of other images.

    Returns:
        A row of squares around the patches, which are outlined: the image's own patch, then the nearest ones in order.

    Raises:
        UnreadableImageError: If one of the files cannot be read any more.
    """
    _, rows, columns = peaks(findings.scores[index][None])
    places = [(index, int(rows[0]), int(columns[0]))]
    places += [(each.image, each.row, each.column) for each in findings.nearest[index]]
    strip = Image.new("RGB", (len(places) * (PART + GAP) - GAP, PART), "white")
    for number, (image, row, column) in enumerate(places):
        region = findings.regions[image]
        wide, high = region.patch_size(findings.grid_size)
        x, y = region.left + (column + 0.5) * wide, region.top + (row + 0.5) * high
        reach = AROUND / 2 * max(wide, high)
        corners = x - reach, y - reach, x + reach, y + reach
        part = read_part(findings.paths[image], corners, PART, findings.largest_value)
        half = PART * wide / (4 * reach), PART * high / (4 * reach)
        draw = ImageDraw.Draw(part)
        for grown, color in ((1, "black"), (0, "white")):
            inner = [PART / 2 - half[0] - grown, PART / 2 - half[1] - grown]
            draw.rectangle((*inner, PART - inner[0], PART - inner[1]), outline=color)
        strip.paste(part, (number * (PART + GAP), 0))
    return strip


def image_pair(findings: Findings, index: int) -> Image.Image:
    """Draw an image beside its heat map, with the outline of the anomaly in white if it is known.

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
    )
