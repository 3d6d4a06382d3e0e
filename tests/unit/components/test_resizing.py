# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Resizing by matrices against PyTorch's in float64: in float32, PyTorch rounds the positions of the filter."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.resizing import resize_antialiased

SIZES = [(20, 2000), (1000, 1500), (256, 256), (100, 37), (8, 8)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("new", [(256, 256), (224, 320)])
@pytest.mark.parametrize("old", SIZES)
def test_equals_pytorch(old, new, interpolation):
    images = torch.rand(2, 3, *old, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images.double(), new, mode=interpolation, antialias=True)
    actual = resize_antialiased(images, new, interpolation)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_equal_size_changes_nothing(size, interpolation):
    images = torch.rand(1, 3, *size)
    assert torch.equal(resize_antialiased(images, size, interpolation), images)
