# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Noise level: how many images stand out from the rest.

It is NOT the share of anomalous images, and the report says so. Measured on KolektorSDD (MobileNetV2 features,
overlap, mean of three seeds), in percent of the images:

=====================================  ====  ====  ====  ====
anomalous among all                    0     8.9   16.6  28.5
=====================================  ====  ====  ====  ====
stand out by lof                       3.1   4.3   4.0   3.9
stand out by lof + gaussian            3.1   4.2   3.9   3.1
upper of two normals, lof              7.3   11.5  11.0  6.6
upper of two normals, lof + gaussian   24.2  12.7  9.7   16.3
=====================================  ====  ====  ====  ====

Normal images that are rare stand out, and anomalous ones that are frequent do not: without labels both look alike. A
mixture of two normal distributions does no better. So nothing is removed by this estimate; what the thresholds ``auto``
of SoftPatch+ go by is how much normal images can bear, see :mod:`anomalib_softpatch.components.support`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import bootstrap, median_abs_deviation

DEVIATIONS = 3.0
CONFIDENCE = 0.9
RESAMPLES = 1000


@dataclass(frozen=True)
class NoiseLevel:
    """Share of images that stand out, with a bootstrap interval of 90 %.

    Args:
        share: Share of the images.
        low: Lower end of the interval.
        high: Upper end of the interval.
        score: Score above which an image stands out.
    """

    share: float
    low: float
    high: float
    score: float


def noise_level(image_scores: torch.Tensor, seed: int = 0) -> NoiseLevel:
    """Count the images whose score exceeds the median by three scaled median absolute deviations.

    Args:
        image_scores: Scores of the images on a scale without bounds, shape ``(images,)``.
        seed: Seed of the bootstrap, which draws images with replacement.

    Returns:
        Share and interval.
    """
    scores = image_scores.double().cpu().numpy()
    share, score = float(_outlying(scores)), float(_limit(scores)[0])
    if len(scores) < 2:  # noqa: PLR2004  # nothing to draw from
        return NoiseLevel(share, share, share, score)
    # The percentile method: the share is that of a few images, for which the corrections of BCa are not defined.
    interval = bootstrap(
        (scores,),
        _outlying,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return NoiseLevel(share, float(interval.low), float(interval.high), score)


def _limit(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    deviation = median_abs_deviation(scores, axis=axis, scale="normal")
    return np.expand_dims(np.median(scores, axis=axis) + DEVIATIONS * deviation, axis)


def _outlying(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    return (scores > _limit(scores, axis)).mean(axis=axis)
