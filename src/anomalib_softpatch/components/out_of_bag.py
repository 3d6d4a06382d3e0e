# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Out-of-bag scores: how training images would score had they not been in training, and a threshold from them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import median_abs_deviation, norm


@dataclass(frozen=True)
class OutOfBagScores:
    """Scores of training images against the memory bank without the patches that they brought into it themselves.

    Attributes:
        image_scores: Image scores, shape ``(images,)``.
        map_peaks: Largest values of the anomaly maps, shape ``(images,)``; empty where the maps' size is not known.
    """

    image_scores: torch.Tensor
    map_peaks: torch.Tensor


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
