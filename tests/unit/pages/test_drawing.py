# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Drawings of images beside their heat maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_softpatch.pages.drawing import GAP, TILE, difference, draw_pair


@pytest.mark.parametrize("size", [(300, 200), (80, 160)])
def test_the_ring_is_around_its_place(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (90, 90, 90)).save(tmp_path / "image.png")
    width, height = size
    place = (width * 2 // 3, height // 4)
    heat, covered = torch.zeros(4, 4), (0.0, 0.0, float(width), float(height))
    plain, marked = (
        np.asarray(draw_pair(tmp_path / "image.png", heat, covered, marked=mark)).astype(int) for mark in (None, place)
    )
    rows, columns = np.nonzero((plain != marked).any(axis=2))
    scale = TILE / max(size)
    assert columns.min() >= TILE + GAP  # on the heat map only
    x = TILE + GAP + (TILE - width * scale) / 2 + (place[0] + 0.5) * scale - 0.5
    y = (TILE - height * scale) / 2 + (place[1] + 0.5) * scale - 0.5
    assert (columns.min() + columns.max()) / 2 == pytest.approx(x, abs=1)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(y, abs=1)
    assert (plain[round(y), round(x)] == marked[round(y), round(x)]).all()  # nothing inside the ring is hidden


@pytest.mark.parametrize("largest_value", [255, 4095])
def test_the_difference_of_a_copy_is_where_it_differs(tmp_path: Path, largest_value: int) -> None:
    pixels = np.full((TILE, TILE), largest_value // 2, dtype=np.uint8 if largest_value == 255 else np.uint16)
    for name in ("one.png", "same.png", "other.png"):
        if name == "other.png":
            pixels[100:120, 40:60] += largest_value // 4
        Image.fromarray(pixels).save(tmp_path / name)
    drawn, largest = difference(tmp_path / "one.png", tmp_path / "other.png", largest_value)
    assert largest == pytest.approx(63, abs=1)
    right = np.asarray(drawn)[:, TILE + GAP :, 0]
    assert right[100:120, 40:60].min() == 255
    assert right[:100].max() == 0
    assert difference(tmp_path / "one.png", tmp_path / "same.png", largest_value)[1] == 0
