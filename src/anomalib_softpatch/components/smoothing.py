# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Smoothing of patch scores: a defect raises the scores of neighboring patches together, chance does not."""

import torch
from torch.nn import functional as F  # noqa: N812


def radius_of(sigma: float) -> int:
    """Return how many patches away a score still counts."""
    return int(3 * sigma + 0.5)


def smooth(scores: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth scores over the grid with a Gaussian, in operations that every export target has.

    Args:
        scores: Shape ``(images, height, width)``; those at the border are repeated beyond it.
        sigma: Standard deviation in patches; with 0, scores stay the same.
    """
    if not sigma:
        return scores
    radius = radius_of(sigma)
    offsets = torch.arange(-radius, radius + 1, device=scores.device, dtype=scores.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = F.pad(scores[:, None], (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel), kernel.mT)[:, 0]
