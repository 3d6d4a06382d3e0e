# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images with their heat maps, and contact sheets of them, drawn with Anomalib's own functions."""

from pathlib import Path

import torch
from anomalib.visualization.image.functional import (
    add_text_to_image,
    create_image_grid,
    overlay_image,
    visualize_anomaly_map,
    visualize_gt_mask,
)
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.report.findings import COLOUR_DECADES, Findings

TILE = 224  # pixels of the side of an image in a contact sheet
GAP = 8
COLUMNS = 4
FONT = font_manager.findfont("DejaVu Sans")  # comes with matplotlib; paths may have letters that Pillow's lacks
TEXT_SIZE = 15
HEADING_SIZE = 26
LEGEND = (
    "Left: the image. Right: where it is unlike the other images.",
    "The colour is a patch's place among all patches of the set:",
    "dark red patches are among the noisiest 0.1 %, cyan ones among 10 %.",
)


def image_pair(findings: Findings, index: int, tile: int = TILE) -> Image.Image:
    """Draw an image beside itself under its heat map, where it is known with the outline of the anomaly in white.

    Args:
        findings: Findings of the set.
        index: Which image.
        tile: Side of the square that each of the two is fitted into, in pixels.

    Returns:
        Image of the size ``(2 * tile + GAP, tile)``.
    """
    region = findings.regions[index]
    with Image.open(findings.paths[index]) as image:
        image.draft("RGB", (2 * tile, 2 * tile))  # JPEG files are decoded at a fraction of their size
        full_width, full_height = image.size
        scale = min(tile / full_width, tile / full_height)
        size = max(1, round(full_width * scale)), max(1, round(full_height * scale))
        thumbnail = image.convert("RGB").resize(size, reducing_gap=3.0)
    # The image may have been decoded smaller, but regions are in pixels of the full size.
    with Image.open(findings.paths[index]) as image:
        scale_x, scale_y = size[0] / image.width, size[1] / image.height
    corner = round(region.left * scale_x), round(region.top * scale_y)
    extent = (
        max(1, round(region.right * scale_x) - corner[0]),
        max(1, round(region.bottom * scale_y) - corner[1]),
    )
    heat = F.interpolate(findings.heat[index][None, None].cpu(), size=extent[::-1], mode="bilinear")[0]
    heat_image = visualize_anomaly_map(heat)
    covered = overlay_image(_cut(thumbnail, corner, extent), heat_image).convert("RGB")
    overlaid = thumbnail.copy()
    overlaid.paste(covered, corner)
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


def _cut(image: Image.Image, corner: tuple[int, int], extent: tuple[int, int]) -> Image.Image:
    return image.crop((*corner, corner[0] + extent[0], corner[1] + extent[1]))


def colour_bar(width: int, height: int) -> Image.Image:
    """Draw the colours of the heat maps from the lowest, on the left, to the highest.

    Args:
        width: Pixels.
        height: Pixels.

    Returns:
        Image of that size.
    """
    return visualize_anomaly_map(torch.linspace(0, 1, width).expand(1, height, width).contiguous())


def contact_sheet(findings: Findings, pairs: dict[int, Image.Image], heading: str) -> Image.Image:
    """Draw images in a grid, under each its rank, score, label (where it is known) and path.

    Args:
        findings: Findings of the set.
        pairs: What :func:`image_pair` gives for each image to show, by its index, in the order to show them in.
        heading: Heading of the sheet.

    Returns:
        The sheet.
    """
    ranks = {index: rank for rank, index in enumerate(findings.order, start=1)}
    cells = [_cell(findings, index, ranks[index], pair) for index, pair in pairs.items()]
    grid = create_image_grid(cells, nrow=min(COLUMNS, len(cells)))
    header = _header(max(grid.width, 2 * cells[0].width), heading)
    sheet = Image.new("RGB", (header.width, header.height + grid.height), "white")
    sheet.paste(header, (0, 0))
    sheet.paste(grid, (0, header.height))
    return sheet


def _cell(findings: Findings, index: int, rank: int, pair: Image.Image) -> Image.Image:
    cell = ImageOps.expand(pair, border=(2 * GAP, GAP, 2 * GAP, 52), fill="white")
    row = findings.table.iloc[rank - 1]
    caption = f"{rank}.  score {row['image_score']:.3f}"
    if findings.labels is not None:
        caption += f"  ·  truth: {row['label']}"
    known_bad = findings.labels is not None and bool(findings.labels[index])
    top = pair.height + GAP + 4
    cell = _write(cell, caption, (2 * GAP, top), color="#b00020" if known_bad else "black")
    return _write(cell, fit_text(findings.names[index], pair.width), (2 * GAP, top + TEXT_SIZE + 6), color="#555555")


def _header(width: int, heading: str) -> Image.Image:
    header = Image.new("RGB", (width, 112), "white")
    header = _write(header, heading, (2 * GAP, 12), size=HEADING_SIZE)
    bar_left, bar_top, bar_width = 2 * GAP, 56, 3 * TILE // 2
    header.paste(colour_bar(bar_width, 16), (bar_left, bar_top))
    shares = [f"{100 / 10**decade:g} %" for decade in range(1, COLOUR_DECADES + 1)]
    for decade, text in enumerate(["all", *shares]):
        x = bar_left + round(decade / COLOUR_DECADES * bar_width)
        ImageDraw.Draw(header).line((x, bar_top, x, bar_top + 20), fill="black")
        header = _write(header, text, (max(bar_left, x - 18), bar_top + 24), size=TEXT_SIZE - 2)
    for line, text in enumerate(LEGEND):
        header = _write(header, text, (bar_left + bar_width + 50, bar_top - 14 + 22 * line))
    return header


def _write(
    image: Image.Image, text: str, position: tuple[int, int], size: int = TEXT_SIZE, color: str = "black"
) -> Image.Image:
    return add_text_to_image(image, text, font=FONT, size=size, color=color, background=None, position=position)


def fit_text(text: str, width: int, size: int = TEXT_SIZE) -> str:
    """Shorten a path from its beginning until it fits.

    Args:
        text: Path.
        width: Pixels.
        size: Size of the letters in pixels.

    Returns:
        The text, or its end after an ellipsis.
    """
    font = ImageFont.truetype(FONT, size)
    # Characters that a file system gives as undecodable bytes cannot be drawn.
    text = str(Path(text)).encode(errors="replace").decode()
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text
