# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images beside their heat maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_softpatch.pages.drawing import GAP, TILE, draw_pair


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
    assert (plain[round(y), round(x)] == marked[round(y), round(x)]).all()  # what is in the ring is seen
