# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images beside their heat maps, drawn with Anomalib's own functions."""

from pathlib import Path

import numpy as np
import torch
from anomalib.visualization.image.functional import overlay_image, visualize_anomaly_map, visualize_gt_mask
from PIL import Image, ImageChops, ImageDraw
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.images.reading import EIGHT_BITS, read_reduced

TILE = 224  # side of the square that an image is fitted into, in pixels
GAP = 8  # pixels between two images
JPEG_QUALITY = 82
RING = 7  # radius of the ring around a marked pixel, in pixels


def draw_pair(
    path: str | Path,
    heat: torch.Tensor,
    covered: tuple[float, float, float, float],
    largest_value: int = EIGHT_BITS,
    outlined: torch.Tensor | None = None,
    marked: tuple[int, int] | None = None,
) -> Image.Image:
    """Draw an image and, beside it, the same image under its heat map, each fitted into a square.

    Args:
        path: Image file.
        heat: Heat map of shape ``(height, width)`` on any grid, from 0 (first color) to 1 (last color); clipped.
        covered: Left, top, right and bottom of the part of the image that the heat map covers, in pixels of the image.
        largest_value: See :func:`~anomalib_softpatch.images.reading.read_image`.
        outlined: Mask to outline in white, boolean on a grid over the same part; ``None`` for no outline.
        marked: Column and row of the pixel of the image to draw a ring around; ``None`` for no ring.

    Returns:
        Image of the size ``(2 * TILE + GAP, TILE)``.

    Raises:
        UnreadableImageError: If the file cannot be read.
    """
    thumbnail, (full_width, full_height) = read_reduced(path, TILE, largest_value)
    scale_x, scale_y = thumbnail.width / full_width, thumbnail.height / full_height
    left, top, right, bottom = covered
    corner = round(left * scale_x), round(top * scale_y)
    extent = max(1, round(right * scale_x) - corner[0]), max(1, round(bottom * scale_y) - corner[1])
    colors = F.interpolate(heat.clamp(0, 1)[None, None].cpu(), size=extent[::-1], mode="bilinear", antialias=True)[0]
    part = thumbnail.crop((*corner, corner[0] + extent[0], corner[1] + extent[1]))
    overlaid = thumbnail.copy()
    overlaid.paste(overlay_image(part, visualize_anomaly_map(colors)).convert("RGB"), corner)
    if outlined is not None:
        mask = F.interpolate(outlined[None, None].float().cpu(), size=extent[::-1], mode="nearest")[0] > 0
        outline = visualize_gt_mask(mask, mode="contour", color=(255, 255, 255))
        overlaid.paste(outline.convert("RGB"), corner, outline.getchannel("A"))
    if marked is not None:
        _draw_ring(overlaid, (marked[0] + 0.5) * scale_x - 0.5, (marked[1] + 0.5) * scale_y - 0.5)
    return _side_by_side(thumbnail, overlaid)


def difference(one: str | Path, other: str | Path, largest_value: int = EIGHT_BITS) -> tuple[Image.Image, int]:
    """Draw a copy (the other file) of an image, and how it differs from the image.

    Both are compared at the size of the drawing.

    Returns:
        The copy and, beside it, the difference in gray, where white is the largest one; and the largest difference of
        a value, of 255.

    Raises:
        UnreadableImageError: If one of the files can no longer be read.
    """
    first, second = (read_reduced(path, TILE, largest_value)[0] for path in (one, other))
    values = np.asarray(ImageChops.difference(first, second.resize(first.size))).max(axis=2)
    largest = int(values.max())
    gray = Image.fromarray((values * (255 / max(1, largest))).astype(np.uint8))
    return _side_by_side(second, gray), largest


def color_bar(width: int, height: int) -> Image.Image:
    """Draw the colors of the heat maps from the lowest, on the left, to the highest; sizes in pixels."""
    return visualize_anomaly_map(torch.linspace(0, 1, width).expand(1, height, width).contiguous()).convert("RGB")


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Center each of two images in a square."""
    pair = Image.new("RGB", (2 * TILE + GAP, TILE), "white")
    for number, half in enumerate((left, right)):
        pair.paste(half, (number * (TILE + GAP) + (TILE - half.width) // 2, (TILE - half.height) // 2))
    return pair


def _draw_ring(image: Image.Image, x: float, y: float) -> None:
    """Draw a ring that is visible on light and dark backgrounds."""
    draw = ImageDraw.Draw(image)
    for radius, color, width in ((RING + 1, "black", 4), (RING, "white", 2)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width)
