# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Out-of-bag scores: how training images would score had they not been in training, and a threshold from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import median_abs_deviation, norm

from anomalib_softpatch.components.nearest_neighbors import nearest_neighbors

# Neighbours looked at, the second number where the first are all left out, before the other rows are searched by
# themselves, without an index: it would have to be built for this one image.
NEIGHBORS = (4, 32)


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
    distance, index = queries.new_empty(len(queries)), torch.empty(len(queries), dtype=torch.long, device=bank.device)
    rest = torch.arange(len(queries), device=bank.device)
    for k in NEIGHBORS:
        distances, indices = search(queries[rest], bank, min(k, len(bank)))
        counts = ~left_out[indices]
        first = counts.int().argmax(dim=1, keepdim=True)
        distance[rest], index[rest] = distances.gather(1, first).squeeze(1), indices.gather(1, first).squeeze(1)
        rest = rest[~counts.any(dim=1)]
        if not len(rest):
            return distance, index
    rows = (~left_out).nonzero().squeeze(1)
    distances, places = nearest_neighbors(queries[rest], bank[rows])
    distance[rest], index[rest] = distances.squeeze(1), rows[places.squeeze(1)]
    return distance, index


def false_alarm_threshold(scores: torch.Tensor, false_alarms: float) -> float:
    """Return the score that an allowed share of normal images exceeds, from scores among which are those of defects.

    How many defects there are is not known, only that they are less than half and that most lie in the upper tail. The
    median and the median absolute deviation are hardly moved by a tail; on a logarithmic scale, where the largest
    distances of images are about symmetrical, normal images are taken to follow the normal distribution that they give.

    Args:
        scores: Out-of-bag scores, 0 or more, shape ``(n,)``; those that are not finite are left out.
        false_alarms: Share of normal images that may exceed the threshold, above 0 and below 1.

    Returns:
        The threshold; not a number if there are no finite scores.
    """
    values = scores[scores.isfinite()].double().cpu().numpy()
    if not len(values):
        return math.nan
    positive = values[values > 0]
    if not len(positive):
        return 0.0
    logarithms = np.log(np.maximum(values, positive.min()))
    spread = median_abs_deviation(logarithms, scale="normal")
    return float(np.exp(np.median(logarithms) + norm.isf(false_alarms) * spread))
