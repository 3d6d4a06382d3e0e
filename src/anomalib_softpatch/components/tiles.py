# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Features of large images, tile by tile: one grid for the whole image, and memory for one image at a time.

Size and stride of the tiles come from Anomalib's ``Tiler``, which its callback gives to a model. Tiles are cut and
their features joined here, because Anomalib joins features as if they were images. Its grid keeps the padding, so that
maps and coordinates shrink where tiles do not fit the image. And its graph cannot be exported in reasonable time.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.patch_features import PatchFeatureExtractor
from anomalib_softpatch.components.tracing import is_traced


def tiles_of(tiler: Tiler | None) -> dict[str, Any] | None:
    """Return the arguments that a tiler was made with, in pixels; ``None`` for none."""
    if tiler is None:
        return None
    return {
        "tile_size": [tiler.tile_size_h, tiler.tile_size_w],
        "stride": [tiler.stride_h, tiler.stride_w],
        "remove_border_count": tiler.remove_border_count,
        "mode": ImageUpscaleMode(tiler.mode).value,
    }


def make_tiler(tiles: Mapping[str, Any] | None) -> Tiler | None:
    """Make a tiler from the arguments that :func:`tiles_of` returns; ``tile_size`` and ``stride`` are enough."""
    return None if tiles is None else Tiler(**{**tiles, "mode": ImageUpscaleMode(tiles.get("mode", "padding"))})


def grid_of(extractor: PatchFeatureExtractor, size: tuple[int, int], tiler: Tiler | None) -> tuple[int, int]:
    """Return height and width of the grid of patches of an image, see :func:`check_tiles`.

    Args:
        extractor: Extractor that runs on the image or on each tile.
        size: Height and width of the image in pixels.
        tiler: Size and stride of the tiles; ``None`` for no tiles.
    """
    if tiler is None:
        return extractor.grid_size(*size)
    step_y, step_x = check_tiles(tiler, extractor, size)
    return -(-size[0] // step_y), -(-size[1] // step_x)


def check_tiles(tiler: Tiler, extractor: PatchFeatureExtractor, size: tuple[int, int] | None) -> tuple[int, int]:
    """Refuse tiles whose features do not form a grid of the whole image.

    Args:
        tiler: Size and stride of the tiles.
        extractor: Extractor that runs on each tile.
        size: Height and width of the images in pixels; ``None`` where they differ.

    Returns:
        Height and width of a patch in pixels.

    Raises:
        ValueError: If the tiles are larger than the images, have a size that the backbone does not take, or do not line
            up with its grid, or if the tiler has options for which features cannot be joined.
    """
    steps = _steps(tiler, extractor.grid_size(tiler.tile_size_h, tiler.tile_size_w))
    if size is not None:
        _starts(tiler, size)
    return steps


def extract_by_tiles(
    extract: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, tiler: Tiler | None
) -> torch.Tensor:
    """Return the features of all patches of images, on one grid for each image, see :func:`check_tiles`.

    Beyond the right and the bottom border, tiles are filled with zeros, and the patches there are left out. Where tiles
    overlap, their features are averaged.

    Args:
        extract: Returns features of shape ``(batch, grid_height, grid_width, channels)`` for tiles.
        images: Shape ``(batch, 3, height, width)``.
        tiler: Size and stride of the tiles; ``None`` for no tiles.
    """
    if tiler is None:
        return extract(images)
    if is_traced():  # a graph takes any number of images at a time
        return _extract_by_tiles(extract, images, tiler)
    return torch.cat([_extract_by_tiles(extract, image[None], tiler) for image in images])


def _extract_by_tiles(
    extract: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, tiler: Tiler
) -> torch.Tensor:
    height, width = images.shape[-2:]
    rows, columns = _starts(tiler, (height, width))
    tile_height, tile_width = tiler.tile_size_h, tiler.tile_size_w
    padded = F.pad(images, (0, columns[-1] + tile_width - width, 0, rows[-1] + tile_height - height))
    tiles = [padded[..., y : y + tile_height, x : x + tile_width] for y in rows for x in columns]
    features = extract(torch.cat(tiles))
    step_y, step_x = _steps(tiler, (features.shape[1], features.shape[2]))
    parts = features.unflatten(0, (len(tiles), -1)).unbind()
    count = len(columns)
    strips = [
        _join(parts[number : number + count], [x // step_x for x in columns], dim=2)
        for number in range(0, len(parts), count)
    ]
    whole = _join(strips, [y // step_y for y in rows], dim=1)
    return whole[:, : -(-height // step_y), : -(-width // step_x)].contiguous()


def _starts(tiler: Tiler, size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Return the first rows and the first columns of all tiles of an image; the last tiles may exceed it."""
    sides = (tiler.tile_size_h, tiler.tile_size_w)
    if size[0] < sides[0] or size[1] < sides[1]:
        msg = (
            f"Tiles of {sides[0]} x {sides[1]} pixels do not fit into images of {size[0]} x {size[1]} (height x "
            "width): use smaller tiles, a larger image size, or no tiles."
        )
        raise ValueError(msg)
    rows, columns = (
        list(range(0, length - side + stride, stride))
        for length, side, stride in zip(size, sides, (tiler.stride_h, tiler.stride_w), strict=True)
    )
    return rows, columns


def _steps(tiler: Tiler, grid: tuple[int, int]) -> tuple[int, int]:
    """Return height and width in pixels of a patch of a tile, given the tile's grid of patches."""
    if tiler.remove_border_count or ImageUpscaleMode(tiler.mode) != ImageUpscaleMode.PADDING:
        msg = "Features of tiles can be joined only with remove_border_count=0 and mode='padding'."
        raise ValueError(msg)
    steps = []
    sides, strides = (tiler.tile_size_h, tiler.tile_size_w), (tiler.stride_h, tiler.stride_w)
    for side, stride, count in zip(sides, strides, grid, strict=True):
        step = -(-side // count)
        if side % count or stride % step:
            msg = (
                f"Tiles of {side} pixels every {stride} pixels do not line up with the backbone's grid: use multiples "
                f"of {step}."
            )
            raise ValueError(msg)
        steps.append(step)
    return steps[0], steps[1]


def _join(parts: Sequence[torch.Tensor], starts: Sequence[int], dim: int) -> torch.Tensor:
    """Join parts of equal length, given their first positions, into one: their mean where they overlap."""
    length = parts[0].shape[dim]
    bounds = sorted({bound for start in starts for bound in (start, start + length)})
    pieces = []
    for first, last in pairwise(bounds):
        around = [(part, start) for part, start in zip(parts, starts, strict=True) if start <= first < start + length]
        here = [part.narrow(dim, first - start, last - first) for part, start in around]
        pieces.append(here[0] if len(here) == 1 else torch.stack(here).mean(dim=0))
    return torch.cat(pieces, dim=dim)
