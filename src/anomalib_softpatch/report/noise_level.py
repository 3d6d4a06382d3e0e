# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Noise level: how many images stand apart from the rest, if that can be determined.

It is not the share of anomalous images: a rare variant of normal images stands apart like a defect does, and a defect
that several images show does not. ``benchmarks/noise_level.py`` measures how often it is right.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import median_abs_deviation
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

DEVIATIONS = 3.0
# "Very strong" evidence for the second distribution: twice the logarithm of the Bayes factor, which the difference of
# the Bayesian information criterion approximates (Kass and Raftery, Bayes Factors, JASA 1995, section 3.2)
STRONG_EVIDENCE = 10.0
SURE, POSSIBLE = 0.9, 0.1  # probability above which an image surely, or possibly, belongs to the upper group
LARGEST_FACTOR = 2.0  # largest ratio of the possible images to the sure ones
LARGEST_SHARE = 0.5  # largest share of possible images: the others must be "the rest"


@dataclass(frozen=True)
class NoiseLevel:
    """How many images stand apart from the rest."""

    low: float  # share of the images that surely stand apart; 0 if unknown
    high: float  # share of the images that may stand apart; 1 if unknown
    known: bool  # whether the two shares are known
    score: float  # score above which a single image stands out: the median plus three robust standard deviations

    def __str__(self) -> str:
        """Return the interval in percent, or "cannot tell"."""
        low, high = (f"{100 * share:.0f}" for share in (self.low, self.high))
        return (f"{low} %" if low == high else f"{low} to {high} %") if self.known else "cannot tell"


def noise_level(image_scores: torch.Tensor) -> NoiseLevel:
    """Count the images whose scores stand apart from the rest.

    Two normal distributions are fitted to the scores. If the upper one is a separate group, and few images lie between
    the two, the group is counted.

    Args:
        image_scores: Rarity of the images, or scores on another unbounded scale, shape ``(images,)``.
    """
    scores = image_scores.double().cpu().numpy()
    score = float(np.median(scores) + DEVIATIONS * median_abs_deviation(scores, scale="normal"))
    sure, possible = _upper_group(scores)
    known = bool(0 < possible <= min(LARGEST_FACTOR * sure, LARGEST_SHARE))
    return NoiseLevel(sure if known else 0.0, possible if known else 1.0, known, score)


def _upper_group(scores: np.ndarray) -> tuple[float, float]:
    """Return the shares of images that surely and that possibly belong to an upper group; zeros if there is none."""
    if len(np.unique(scores)) < 4:  # noqa: PLR2004  # too few to fit two distributions to
        return 0.0, 0.0
    values = ((scores - scores.mean()) / scores.std())[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, two = (GaussianMixture(count, n_init=3, random_state=0).fit(values) for count in (1, 2))
    if one.bic(values) - two.bic(values) < STRONG_EVIDENCE:
        return 0.0, 0.0
    means = two.means_[:, 0]
    belongs = two.predict_proba(values)[:, means.argmax()]
    # Beyond both means the wider distribution is the likelier one, so images there are assigned by hand
    belongs[values[:, 0] <= means.min()] = 0
    belongs[values[:, 0] >= means.max()] = 1
    return float((belongs > SURE).mean()), float((belongs > POSSIBLE).mean())
