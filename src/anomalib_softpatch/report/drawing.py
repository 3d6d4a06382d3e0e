# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images beside their heat maps, drawn with Anomalib's own functions."""

import torch
from anomalib.visualization.image.functional import overlay_image, visualize_anomaly_map, visualize_gt_mask
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.images.reading import read_reduced
from anomalib_softpatch.report.findings import Findings

TILE = 224  # pixels of the side of the square that an image is fitted into
GAP = 8
# Of the heat maps' range of colours: the noisiest 1 / 10 ** COLOUR_DECADES of all patches have the last colour.
COLOUR_DECADES = 3


def image_pair(findings: Findings, index: int, tile: int = TILE) -> Image.Image:
    """Draw an image beside itself under its heat map, where it is known with the outline of the anomaly in white.

    Args:
        findings: Findings of the set.
        index: Which image.
        tile: Side of the square that each of the two is fitted into, in pixels.

    Returns:
        Image of the size ``(2 * tile + GAP, tile)``.

    Raises:
        UnreadableImageError: If the file cannot be read any more.
    """
    region = findings.regions[index]
    thumbnail, (full_width, full_height) = read_reduced(findings.paths[index], tile, findings.largest_value)
    scale_x, scale_y = thumbnail.width / full_width, thumbnail.height / full_height
    corner = round(region.left * scale_x), round(region.top * scale_y)
    extent = (
        max(1, round(region.right * scale_x) - corner[0]),
        max(1, round(region.bottom * scale_y) - corner[1]),
    )
    heat = (findings.rarity[index] / COLOUR_DECADES).clamp(0, 1)
    heat = F.interpolate(heat[None, None].cpu(), size=extent[::-1], mode="bilinear")[0]
    covered = thumbnail.crop((*corner, corner[0] + extent[0], corner[1] + extent[1]))
    overlaid = thumbnail.copy()
    overlaid.paste(overlay_image(covered, visualize_anomaly_map(heat)).convert("RGB"), corner)
    if findings.true_patches is not None and findings.true_patches[index].any():
        truth = findings.true_patches[index][None, None].float().cpu()
        mask = F.interpolate(truth, size=extent[::-1], mode="nearest")[0] > 0
        outline = visualize_gt_mask(mask, mode="contour", color=(255, 255, 255))
        overlaid.paste(outline.convert("RGB"), corner, outline.getchannel("A"))
    pair = Image.new("RGB", (2 * tile + GAP, tile), "white")
    for number, half in enumerate((thumbnail, overlaid)):
        left = number * (tile + GAP) + (tile - half.width) // 2
        pair.paste(half, (left, (tile - half.height) // 2))
    return pair


def colour_bar(width: int, height: int) -> Image.Image:
    """Draw the colours of the heat maps from the lowest, on the left, to the highest.

    Args:
        width: Pixels.
        height: Pixels.

    Returns:
        Image of that size.
    """
    return visualize_anomaly_map(torch.linspace(0, 1, width).expand(1, height, width).contiguous()).convert("RGB")
