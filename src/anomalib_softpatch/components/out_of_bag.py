# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Out-of-bag scores: how training images would score had they not been in training, and a threshold from them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import median_abs_deviation, norm

ROUNDING = 1e-9  # 0.05 of 20 images is one of them


@dataclass(frozen=True)
class OutOfBagScores:
    """Scores of training images against the memory bank without the patches that they brought into it themselves.

    Attributes:
        image_scores: Image scores, shape ``(images,)``.
        map_peaks: Largest values of the anomaly maps, shape ``(images,)``; empty where the maps' size is not known.
    """

    image_scores: torch.Tensor
    map_peaks: torch.Tensor


def decided_threshold(scores: torch.Tensor, decided: torch.Tensor, false_alarms: float) -> tuple[float, list[int]]:
    """Return the score that an allowed share of good images reaches, where people have decided about the highest ones.

    People decide about images that look suspicious, so that the scores of those that they call good are no sample of
    good images. But where all images from some score on are decided, it does not matter how they were chosen: how many
    good images score as much is known. Of ``n`` images, a new one scores above the ``k``-th highest in ``k / (n + 1)``
    of cases, if it is drawn from the same (the rank of any of ``n + 1`` is as likely as any other). So the threshold is
    the ``k``-th highest score with the largest ``k`` for which that is the share or less.

    Args:
        scores: Scores of images as if they were new, without those that are known to be defects, chosen regardless of
            what they show, shape ``(n,)``.
        decided: Which of them are said to be normal, boolean of shape ``(n,)``.
        false_alarms: Share of normal images that may exceed the threshold, above 0 and below 1.

    Returns:
        The threshold, not a number if it cannot be said; and which of the images it takes decisions about, the highest
        first: none also if there are fewer images than that share can be told of.
    """
    count = math.floor(false_alarms * (len(scores) + 1) + ROUNDING)
    if count < 1 or not bool(scores.isfinite().all()):
        return math.nan, []
    highest = scores.sort(descending=True, stable=True).indices[:count].tolist()
    missing = [index for index in highest if not decided[index]]
    return (math.nan, missing) if missing else (float(scores[highest[-1]]), [])


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
