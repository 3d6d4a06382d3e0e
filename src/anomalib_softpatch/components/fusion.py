# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Fusion: how the scores of several discriminators become one."""

from collections.abc import Sequence

import torch
from scipy.stats import rankdata


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Return the rank of every score among all, 0 for the lowest and 1 for the highest; ties share their mean rank.

    Args:
        scores: Any shape.

    Returns:
        float32 of the same shape, on the same device.
    """
    mean_rank = rankdata(scores.detach().cpu().numpy(), axis=None) - 1
    scaled = torch.from_numpy(mean_rank / max(1, scores.numel() - 1))
    return scaled.view(scores.shape).to(scores.device, torch.float32)


def fuse(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """Fuse the scores of several discriminators: the mean of their ranks over all patches (SoftPatch+).

    Args:
        scores: Tensors of one shape.

    Returns:
        float32 of that shape, in [0, 1].
    """
    return torch.stack([ranks(score) for score in scores]).mean(dim=0)
