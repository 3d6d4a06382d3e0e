# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Out-of-bag scores: how training images would score had they not been in training, and a threshold from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Neighbours looked at before a query is searched without its own image's rows: these are rarely all of the nearest.
FIRST_NEIGHBORS = 4


@dataclass(frozen=True)
class OutOfBagScores:
    """Scores of training images against the memory bank without the patches that they brought into it themselves.

    Attributes:
        image_scores: Image scores, shape ``(images,)``.
        map_peaks: Largest values of the anomaly maps, shape ``(images,)``; empty where the maps' size is not known.
    """

    image_scores: torch.Tensor
    map_peaks: torch.Tensor


def out_of_bag_neighbors(
    search: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]],
    queries: torch.Tensor,
    bank: torch.Tensor,
    left_out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest row of a bank for each query, some rows left out.

    Args:
        search: Finds the k nearest rows: :func:`nearest_neighbors` or :class:`NearestNeighborSearch`.
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        left_out: Which rows do not count, boolean of shape ``(m,)``.

    Returns:
        Distances and indices of shape ``(n,)``; infinite and 0 if all rows are left out.
    """
    if left_out.all():
        return queries.new_full((len(queries),), math.inf), torch.zeros(len(queries), dtype=torch.long)
    distances, indices = search(queries, bank, min(FIRST_NEIGHBORS, len(bank)))
    counts = ~left_out[indices]
    first = counts.int().argmax(dim=1, keepdim=True)
    distance, index = distances.gather(1, first).squeeze(1), indices.gather(1, first).squeeze(1)
    rest = (~counts.any(dim=1)).nonzero().squeeze(1)
    if len(rest):
        rows = (~left_out).nonzero().squeeze(1)
        others, places = search(queries[rest], bank[rows], 1)
        distance[rest], index[rest] = others.squeeze(1), rows[places.squeeze(1)]
    return distance, index


def false_alarm_threshold(scores: torch.Tensor, false_alarms: float) -> float:
    """Return the score that an allowed share of normal images exceeds, from scores among which are those of defects.

    Defects lie in the upper tail, how many is not known. So nothing above the most frequent score is looked at: below
    it, normal images are taken to spread as they do above, on a logarithmic scale, as a normal distribution.

    Args:
        scores: Out-of-bag scores, positive or zero, shape ``(n,)``.
        false_alarms: Share of normal images that may exceed the threshold, above 0 and below 1.

    Returns:
        The threshold; not a number if there are no finite scores.
    """
    finite = scores[scores.isfinite()].double()
    if not len(finite):
        return math.nan
    smallest = finite[finite > 0].min() if bool((finite > 0).any()) else finite.new_tensor(1.0)
    logarithms = finite.clamp_min(smallest).log().sort().values
    mode = half_sample_mode(logarithms)
    below = mode - logarithms[logarithms <= mode]
    spread = below.square().mean().sqrt()
    quantile = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * false_alarms, dtype=torch.float64)))
    return float((mode + quantile * spread).exp()) if bool((finite > 0).any()) else 0.0


def half_sample_mode(values: torch.Tensor) -> torch.Tensor:
    """Return the most frequent value: the half of the values that is narrowest, and of that again.

    Args:
        values: Ascending, shape ``(n,)``, n at least 1.

    Returns:
        A scalar.

    References:
        Robertson and Cryer, An Iterative Procedure for Estimating the Mode, 1974.
    """
    while len(values) > 3:  # noqa: PLR2004
        half = -(-len(values) // 2)
        widths = values[half - 1 :] - values[: len(values) - half + 1]
        start = int(widths.argmin())
        values = values[start : start + half]
    return values.mean()
