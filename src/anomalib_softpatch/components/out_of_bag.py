# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Out-of-bag scores: how training images would score had they not been in training, and a threshold from them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import median_abs_deviation, norm

ROUNDING = 1e-9  # so that 0.05 of 20 images is one image


@dataclass(frozen=True)
class OutOfBagScores:
    """Scores of training images, each against the memory bank without the patches from the image itself.

    Attributes:
        image_scores: Image scores, shape ``(images,)``.
        map_peaks: Largest values of the anomaly maps, shape ``(images,)``; empty where the maps' size is not known.
    """

    image_scores: torch.Tensor
    map_peaks: torch.Tensor


def decided_threshold(scores: torch.Tensor, decided: torch.Tensor, false_alarms: float) -> tuple[float, list[int]]:
    """Return the threshold for a share of false alarms, if people have decided about the images that score highest.

    People decide about images that look suspicious, so the images that they call good are not a random sample. But if
    all images above some score are decided, it does not matter how they were chosen: it is known how many good images
    score that high. A new image scores above the ``k``-th highest of ``n`` images with a probability of ``k / (n + 1)``
    if it is drawn from the same distribution, since all ``n + 1`` ranks are equally likely. So the threshold is the
    ``k``-th highest score, with the largest ``k`` for which this probability does not exceed the share.

    Args:
        scores: Scores of images as if they were new, shape ``(n,)``, without known defects. The choice of the images
            must not depend on what they show.
        decided: Which of them people have called normal, boolean of shape ``(n,)``.
        false_alarms: Share of normal images that may exceed the threshold, above 0 and below 1.

    Returns:
        The threshold, NaN if it is not known; and the images that still need a decision, the highest score first, or
        none if the images are too few for this share.
    """
    count = math.floor(false_alarms * (len(scores) + 1) + ROUNDING)
    if count < 1 or not bool(scores.isfinite().all()):
        return math.nan, []
    highest = scores.sort(descending=True, stable=True).indices[:count].tolist()
    missing = [index for index in highest if not decided[index]]
    return (math.nan, missing) if missing else (float(scores[highest[-1]]), [])


def false_alarm_threshold(scores: torch.Tensor, false_alarms: float) -> float:
    """Return the score that a given share of normal images exceeds, from scores that include those of defects.

    The number of defects is not known, only that they are less than half of the images and that most are in the upper
    tail, which hardly changes the median and the median absolute deviation. On a logarithmic scale, image scores are
    about symmetrical. There, normal images are assumed to follow the normal distribution with this median and spread.

    Args:
        scores: Out-of-bag scores, 0 or more, shape ``(n,)``; scores that are not finite are left out.
        false_alarms: Share of normal images that may exceed the threshold, above 0 and below 1.

    Returns:
        The threshold; NaN if there are no finite scores.
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
