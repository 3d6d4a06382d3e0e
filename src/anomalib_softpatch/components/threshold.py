# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Threshold: which patches are removed as noise."""

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
