# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Scores of patches against two memory banks: the first one gives the image score, the last one the map.

A map needs the scores of all patches, but an image score needs only the largest one. The distance of a patch to any row
of a bank is an upper bound of its distance to the nearest row, and the rows that both banks share have been searched
for the map. So if many rows belong only to the first bank, they are compared only with the patches that can have the
largest score. See ``docs/pruning.md``.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.search.bank import MemoryBank, Nearest, Search, contains, put, select
from anomalib_softpatch.components.smoothing import radius_of, smooth
from anomalib_softpatch.components.tracing import is_traced, rows_of

# Patches of each image that are compared first; fewer with smoothing, where the patches around each are compared, too
TRIED_FIRST = 16
# Elements of the rows that belong only to the first bank: fewer than this are compared as fast with all patches
SMALLEST_OWN_PART = 2**20


def score_by_banks(
    search: Search,
    queries: torch.Tensor,
    bank: MemoryBank,
    shape: tuple[int, int, int],
    smoothing: float = 0.0,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score patches against two banks; each part of them is searched once.

    Args:
        search: Searches the parts of the bank.
        queries: Patches of a batch of images, shape ``(batch * height * width, d)``.
        bank: The memory bank. Its first and its last range may be the same.
        shape: Images, height and width of their grid of patches.
        smoothing: Standard deviation, in patches, of the Gaussian that smooths the scores against the first bank.
        counts: Factor of the scores at each position, 0 or 1, shape ``(height, width)``. Default: all positions count.

    Returns:
        Three tensors of shape ``(batch, height * width)``: smoothed scores against the first bank, of which the largest
        of each image is correct, and no other score is larger; nearest rows of the first bank, correct for the patch
        with the largest score; scores against the last bank.
    """
    first_bank, last_bank = bank.bank_ranges[0], bank.bank_ranges[-1]
    weights = bank.weights
    own = [part for part in bank.parts if not contains(last_bank, part)]

    shared = None
    for part in bank.parts:
        if contains(first_bank, part) and contains(last_bank, part):
            shared = search.nearest(queries, part, shared)
    of_map = shared
    for part in bank.parts:
        if not contains(first_bank, part):
            of_map = search.nearest(queries, part, of_map)
    assert of_map is not None  # no bank is empty
    map_scores = _score(of_map, weights[of_map[1]], shape, 0.0, counts)

    def compare(some: torch.Tensor, nearest: Nearest | None) -> Nearest:
        for part in own:
            nearest = search.nearest(some, part, nearest)
        assert nearest is not None
        return nearest

    # On a GPU, comparing fewer patches takes no less time
    elements = sum(stop - start for start, stop in own) * queries.shape[1]
    worth_pruning = (is_traced() or queries.device.type == "cpu") and elements >= SMALLEST_OWN_PART
    if shared is not None and worth_pruning:
        largest_weight = weights[slice(*first_bank)].amax(dim=0)
        nearest = _compare_possible(compare, queries, weights, largest_weight, shared, shape, smoothing, counts)
    else:
        nearest = compare(queries, shared)
    scores = _score(nearest, weights[nearest[1]], shape, smoothing, counts)
    return scores, nearest[1].view(shape[0], -1), map_scores


def _compare_possible(
    compare: Callable[[torch.Tensor, Nearest], Nearest],
    queries: torch.Tensor,
    weights: torch.Tensor,
    largest_weight: torch.Tensor,  # of the first bank
    known: Nearest,  # any rows of the first bank
    shape: tuple[int, int, int],
    smoothing: float,
    counts: torch.Tensor | None,
) -> Nearest:
    """Return the nearest rows of the patches that can have the largest score, and the known rows of all others."""
    radius = radius_of(smoothing)

    def compare_patches(mask: torch.Tensor, nearest: Nearest) -> Nearest:
        some = rows_of(mask)
        return put(nearest, some, compare(queries.index_select(0, some), select(nearest, some)))

    # Patches whose bound is NaN, such as an infinite distance times zero, are compared, too
    bounds = _score(known, largest_weight, shape, smoothing, counts)
    count = max(1, TRIED_FIRST // (1 + radius))
    limit = F.pad(bounds, (0, count), value=-torch.inf).topk(count, dim=1).values[:, -1:]  # images may be smaller
    tried = ~(bounds < limit)
    around_tried = _around(tried, shape, radius)
    nearest = compare_patches(around_tried, known)
    scores = _score(nearest, weights[nearest[1]], shape, smoothing, counts)
    possible = ~(bounds < scores.masked_fill(~tried, -torch.inf).amax(dim=1, keepdim=True))
    return compare_patches(_around(possible, shape, radius) & ~around_tried, nearest)


def _score(
    nearest: Nearest,
    weights: torch.Tensor,
    shape: tuple[int, int, int],
    smoothing: float,
    counts: torch.Tensor | None,
) -> torch.Tensor:
    """Return smoothed scores of shape ``(batch, height * width)``."""
    scores = (nearest[0] * weights).view(shape)
    return smooth(scores if counts is None else scores * counts, smoothing).flatten(1)


def _around(mask: torch.Tensor, shape: tuple[int, int, int], radius: int) -> torch.Tensor:
    """Return which patches are near those of a mask of shape ``(batch, height * width)``, as one vector."""
    if not radius:
        return mask.flatten()
    near = F.max_pool2d(mask.view(shape)[:, None].float(), 2 * radius + 1, stride=1, padding=radius)
    return near.flatten() > 0
