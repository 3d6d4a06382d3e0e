# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Noise level: how many images stand apart from the rest, where that can be told.

It is not the share of anomalous images: a rare variant of normal images stands apart like a defect, and a defect that
several images show does not. ``benchmarks/noise_level.py`` measures how often it is right.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import median_abs_deviation
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

DEVIATIONS = 3.0
# "Very strong" evidence for the second distribution: twice the logarithm of the Bayes factor, as the difference of the
# Bayesian information criterion approximates it (Kass and Raftery, Bayes Factors, JASA 1995, section 3.2)
STRONG_EVIDENCE = 10.0
# Images that surely are of the upper group, and images that may be
SURE, POSSIBLE = 0.9, 0.1
# Between how many there surely are and how many there may be, and how many there may be beside "the rest"
LARGEST_FACTOR = 2.0
LARGEST_SHARE = 0.5


@dataclass(frozen=True)
class NoiseLevel:
    """How many images stand apart from the rest.

    Args:
        low: Share of the images that surely stand apart; 0 where that cannot be told.
        high: Share of the images that may stand apart; 1 where that cannot be told.
        known: Whether it can be told.
        score: Score above which a single image stands out: the median and three robust standard deviations.
    """

    low: float
    high: float
    known: bool
    score: float

    def __str__(self) -> str:
        """Return the interval in percent, or that it is not known."""
        low, high = (f"{100 * share:.0f}" for share in (self.low, self.high))
        return (f"{low} %" if low == high else f"{low} to {high} %") if self.known else "cannot tell"


def noise_level(image_scores: torch.Tensor) -> NoiseLevel:
    """Count the images that stand apart from the rest by their scores.

    Two normal distributions are fitted to the scores. Where the upper one is a group of its own, and few images lie
    between the two, the group is counted.

    Args:
        image_scores: Rarity of the images, or scores on another scale without bounds, shape ``(images,)``.
    """
    scores = image_scores.double().cpu().numpy()
    score = float(np.median(scores) + DEVIATIONS * median_abs_deviation(scores, scale="normal"))
    sure, possible = _upper_group(scores)
    known = bool(0 < possible <= min(LARGEST_FACTOR * sure, LARGEST_SHARE))
    return NoiseLevel(sure if known else 0.0, possible if known else 1.0, known, score)


def _upper_group(scores: np.ndarray) -> tuple[float, float]:
    """Return the shares of images that surely and that possibly are of an upper group; zeros if there is none."""
    if len(np.unique(scores)) < 4:  # noqa: PLR2004  # nothing to fit two distributions to
        return 0.0, 0.0
    values = ((scores - scores.mean()) / scores.std())[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, two = (GaussianMixture(count, n_init=3, random_state=0).fit(values) for count in (1, 2))
    if one.bic(values) - two.bic(values) < STRONG_EVIDENCE:
        return 0.0, 0.0
    means = two.means_[:, 0]
    belongs = two.predict_proba(values)[:, means.argmax()]
    # The wider distribution is the likelier one on both sides
    belongs[values[:, 0] <= means.min()] = 0
    belongs[values[:, 0] >= means.max()] = 1
    return float((belongs > SURE).mean()), float((belongs > POSSIBLE).mean())
