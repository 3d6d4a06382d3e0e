# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Nearest neighbours of patches in the memory bank, in operations that every export target has."""

import torch

# Bank rows in one matrix product: bounds memory at (queries x BANK_BLOCK) however large the bank, also in exported graphs
BANK_BLOCK = 4096


def nearest_neighbors(queries: torch.Tensor, bank: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest rows of the bank by Euclidean distance, exactly.

    Matrix products find the neighbours; the distances come from the differences, so that they keep their digits where
    a query lies close to its neighbour. (Anomalib's PatchCore takes them from the expanded square.)

    Args:
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        k: Number of neighbours, at most m.

    Returns:
        Distances and indices, both of shape ``(n, k)``, nearest first.
    """
    values: list[torch.Tensor] = []
    indices: list[torch.Tensor] = []
    for start in range(0, len(bank), BANK_BLOCK):
        part = bank[start : start + BANK_BLOCK]
        # |q - b|^2 without |q|^2, which is the same for all b
        squares = part.square().sum(dim=1) - 2 * (queries @ part.T)
        if k == 1:  # much faster than topk
            value, index = squares.min(dim=1, keepdim=True)
        else:
            value, index = squares.topk(min(k, part.shape[0]), dim=1, largest=False)
        values.append(value)
        indices.append(index + start)
    nearest = indices[0]
    if len(indices) > 1:
        best = torch.cat(values, dim=1).topk(k, dim=1, largest=False).indices
        nearest = torch.cat(indices, dim=1).gather(1, best)
    distances = (queries[:, None] - bank[nearest]).square().sum(dim=2).sqrt()
    return distances, nearest
