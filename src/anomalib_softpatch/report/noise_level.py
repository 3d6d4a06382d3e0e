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
mixture of two normal distributions does no better. So there is no ``threshold="auto"``: an estimate that does not grow
with the noise cannot set one.
"""

from dataclasses import dataclass

import numpy as np
import torch

DEVIATIONS = 3.0
RESAMPLES = 1000


@dataclass(frozen=True)
class NoiseLevel:
    """Share of images that stand out, with a bootstrap interval of 90 %.

    Args:
        share: Share of the images.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    share: float
    low: float
    high: float


def noise_level(image_scores: torch.Tensor, seed: int = 0) -> NoiseLevel:
    """Count the images whose score exceeds the median by three scaled median absolute deviations.

    Args:
        image_scores: Scores of the images on a scale without bounds, shape ``(images,)``.
        seed: Seed of the bootstrap, which draws images with replacement.

    Returns:
        Share and interval.
    """
    scores = image_scores.double().cpu().numpy()
    generator = np.random.default_rng(seed)
    shares = [_outlying(generator.choice(scores, len(scores))) for _ in range(RESAMPLES)]
    low, high = np.quantile(shares, (0.05, 0.95))
    return NoiseLevel(_outlying(scores), float(low), float(high))


def _outlying(scores: np.ndarray) -> float:
    median = np.median(scores)
    deviation = 1.4826 * np.median(np.abs(scores - median))  # equals the standard deviation for a normal distribution
    return float((scores > median + DEVIATIONS * deviation).mean())
