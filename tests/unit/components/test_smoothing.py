# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Smoothing against SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anomalib_softpatch.components.smoothing import smooth


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 9), (16, 7)])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_smoothing_equals_scipy(height: int, width: int, sigma: float) -> None:
    scores = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(scores.double().numpy(), sigma, mode="nearest", truncate=3, axes=(1, 2))
    np.testing.assert_allclose(smooth(scores, sigma), expected, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (2, 3), (3, 1)])
def test_smoothing_of_small_grids(height: int, width: int) -> None:
    """The kernel ends where the grid does, and its weights still sum to one."""
    torch.testing.assert_close(smooth(torch.full((2, height, width), 3.0), 1.0), torch.full((2, height, width), 3.0))
    scores = torch.rand(2, height, width)
    smoothed = smooth(scores, 1.0)
    assert smoothed.shape == scores.shape
    assert (smoothed.amax(dim=(1, 2)) <= scores.amax(dim=(1, 2)) + 1e-6).all()
    assert (smoothed.amin(dim=(1, 2)) >= scores.amin(dim=(1, 2)) - 1e-6).all()
