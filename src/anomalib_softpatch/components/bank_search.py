# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Scores of patches against two memory banks: the first one gives the image score, the last one the map.

A map needs the scores of all patches, an image score the largest one only. Most patches cannot have it: the distance to
any row of a bank is an upper bound of the distance to the nearest one, and the rows that both banks share have been
searched for the map. Only the patches that such a bound leaves are compared with the rest of the first bank.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.nearest_neighbors import Nearest
from anomalib_softpatch.components.smoothing import radius_of, smooth
from anomalib_softpatch.components.tracing import put, rows_of, select

# Searches rows (start, stop) of a bank for queries of shape (n, d), and returns what is nearest, that or what is known
Search = Callable[[torch.Tensor, tuple[int, int], Nearest | None], Nearest]

# Patches with the largest bounds that are searched first, of each image; fewer where each comes with its neighbours
FIRST = 16
# Elements of the rows that the first bank has alone: fewer are searched as fast for all patches
SMALLEST_PART = 2**20


def disjoint(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut ranges where any of them starts or stops, and return the parts that belong to one at least."""
    edges = sorted({edge for pair in ranges for edge in pair})
    return [part for part in pairwise(edges) if any(_contains(pair, part) for pair in ranges)]


def score_by_banks(
    search: Search,
    queries: torch.Tensor,
    weights: torch.Tensor,
    ranges: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, int, int],
    smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score patches against two banks, each part of them searched once.

    Args:
        search: Searches a part of the banks, one that :func:`disjoint` gives.
        queries: Patches of a batch of images, shape ``(batch * height * width, d)``.
        weights: Weight of each row of the banks, not negative, shape ``(m,)``.
        ranges: Rows ``(start, stop)`` of the first and the last bank, which may be the same.
        shape: Images, height and width of their grid of patches.
        smoothing: Standard deviation, in patches, of what smooths the scores against the first bank.

    Returns:
        Smoothed scores against the first bank, of shape ``(batch, height * width)``: all that can be the largest one of
        their image, and negative infinity for others. Nearest rows of the first bank, right where such a score is not
        smoothed or the largest, shape ``(batch, height * width)``. Scores against the last bank, the same shape.
    """
    first, last = ranges
    parts = disjoint(ranges)
    shared = [part for part in parts if _contains(first, part) and _contains(last, part)]
    own = [part for part in parts if not _contains(last, part)]

    known = None
    for part in shared:
        known = search(queries, part, known)
    nearest = known
    for part in parts:
        if not _contains(first, part):
            nearest = search(queries, part, nearest)
    assert nearest is not None  # no bank is empty
    map_scores = nearest[0] * weights[nearest[1]]

    def compare(some: torch.Tensor, known: Nearest | None) -> Nearest:
        for part in own:
            known = search(some, part, known)
        assert known is not None
        return known

    if known is None or not _worth_pruning(queries, own):
        known = compare(queries, known)
        scores = smooth((known[0] * weights[known[1]]).view(shape), smoothing).flatten(1)
    else:
        scores, known = _largest_scores(compare, queries, weights, first, known, shape, smoothing)
    return scores, known[1].view(shape[0], -1), map_scores.view(shape[0], -1)


def _largest_scores(
    compare: Callable[[torch.Tensor, Nearest], Nearest],
    queries: torch.Tensor,
    weights: torch.Tensor,
    rows: tuple[int, int],
    known: Nearest,
    shape: tuple[int, int, int],
    smoothing: float,
) -> tuple[torch.Tensor, Nearest]:
    """Return scores as :func:`score_by_banks` does, and the nearest rows of the patches that were compared.

    Rounding keeps the order of products and of sums, so that no score exceeds its bound.

    Args:
        compare: Compares some of the queries with the rows that the first bank has alone.
        queries: See :func:`score_by_banks`.
        weights: Likewise.
        rows: Rows ``(start, stop)`` of the first bank.
        known: Rows of the first bank, no matter which, one of each query.
        shape: See :func:`score_by_banks`.
        smoothing: Likewise.
    """
    radius = radius_of(smoothing)

    def compare_patches(mask: torch.Tensor, known: Nearest) -> Nearest:
        some = rows_of(mask)
        return put(known, some, compare(queries.index_select(0, some), select(known, some)))

    # Positive, since an infinite distance times zero has no value
    largest = weights[slice(*rows)].amax(dim=0).clamp(min=torch.finfo(weights.dtype).tiny)
    bounds = smooth((known[0] * largest).view(shape), smoothing).flatten(1)
    count = max(1, FIRST // (1 + radius))
    enough = F.pad(bounds, (0, count), value=-torch.inf).topk(count, dim=1).values[:, -1:]  # of small images, too
    first = ~(bounds < enough)  # NaN, too
    compared = _around(first, shape, radius)
    known = compare_patches(compared, known)
    scores = smooth((known[0] * weights[known[1]]).view(shape), smoothing).flatten(1)
    possible = ~(bounds < scores.masked_fill(~first, -torch.inf).amax(dim=1, keepdim=True))
    known = compare_patches(_around(possible, shape, radius) & ~compared, known)
    scores = smooth((known[0] * weights[known[1]]).view(shape), smoothing).flatten(1)
    return scores.masked_fill(~possible, -torch.inf), known


def _around(mask: torch.Tensor, shape: tuple[int, int, int], radius: int) -> torch.Tensor:
    """Return which patches are near one of those of a mask of shape ``(batch, height * width)``, as one vector."""
    if not radius:
        return mask.flatten()
    near = F.max_pool2d(mask.view(shape)[:, None].float(), 2 * radius + 1, stride=1, padding=radius)
    return near.flatten() > 0


def _worth_pruning(queries: torch.Tensor, parts: Sequence[tuple[int, int]]) -> bool:
    rows = sum(stop - start for start, stop in parts)
    return queries.device.type == "cpu" and rows * queries.shape[1] >= SMALLEST_PART


def _contains(pair: tuple[int, int], part: tuple[int, int]) -> bool:
    """Return whether a range contains a part that :func:`disjoint` gives."""
    return pair[0] <= part[0] < pair[1]
