# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Threshold: which patches are noise, and how scores of several discriminators become one."""

from collections.abc import Sequence

import torch


def keep_mask(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Tell which patches stay when the highest-scoring share of ALL patches is removed (SoftPatch, section 3.3).

    Patches that tie with the last one that stays, stay too, so that at least one always does.

    Args:
        scores: Noise scores of any shape.
        threshold: Share to remove, tau in the paper, in [0, 1).

    Returns:
        Boolean of the shape of the scores.
    """
    if threshold == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    kept = max(1, scores.numel() - int(threshold * scores.numel()))
    return scores <= scores.flatten().kthvalue(kept).values


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Return the rank of every score among all, 0 for the lowest and 1 for the highest; ties share their mean rank.

    Args:
        scores: Any shape.

    Returns:
        float32 of the same shape.
    """
    flat = scores.flatten()
    if len(flat) == 1:
        return torch.zeros_like(scores, dtype=torch.float32)
    order = flat.argsort()
    _, inverse, counts = torch.unique_consecutive(flat[order], return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0)
    mean_rank = last.double() - (counts.double() + 1) / 2  # of the ranks last - count .. last - 1
    result = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
    result[order] = (mean_rank / (len(flat) - 1)).float()[inverse]
    return result.view(scores.shape)


def fuse(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """Fuse the scores of several discriminators: the mean of their ranks over all patches (SoftPatch+).

    Args:
        scores: Tensors of one shape.

    Returns:
        float32 of that shape, in [0, 1].
    """
    return torch.stack([ranks(score) for score in scores]).mean(dim=0)
