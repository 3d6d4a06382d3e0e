# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Anomalib's tiler as plain data: the features of a memory bank depend on it, so that it belongs into a checkpoint."""

from typing import Any

from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler


def tiles_of(tiler: Tiler | None) -> dict[str, Any] | None:
    """Return the arguments that a tiler was made with, in pixels; ``None`` for none.

    Args:
        tiler: Tiler.
    """
    if tiler is None:
        return None
    return {
        "tile_size": [tiler.tile_size_h, tiler.tile_size_w],
        "stride": [tiler.stride_h, tiler.stride_w],
        "remove_border_count": tiler.remove_border_count,
        "mode": ImageUpscaleMode(tiler.mode).value,
    }


def make_tiler(tiles: dict[str, Any] | None) -> Tiler | None:
    """Make the tiler that :func:`tiles_of` has described.

    Args:
        tiles: What it returned.
    """
    return None if tiles is None else Tiler(**tiles | {"mode": ImageUpscaleMode(tiles["mode"])})
