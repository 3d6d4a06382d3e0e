# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Promises from people's decisions about scored images: limits of a rate that hold with 95 % confidence.

If ``k`` of ``n`` good images are called anomalous, the share of all good images that is called anomalous is at most the
upper limit of Clopper and Pearson (The Use of Confidence or Fiducial Limits, Biometrika 1934). Whatever the true share
is, at most 5 % of such promises are broken. The same limit for missed defects gives the share that is found.

A promise has four conditions:

- The decided images are drawn at random from those that the promise is about, or, for good images, are the most
  suspicious ones. If ``K`` of all ``N`` good images are above the threshold, ``min(K, n)`` of the ``n`` most suspicious
  ones are. The limit for ``min(K, n)`` of ``n`` is never below that for ``K`` of ``N``.
- If images are drawn at random, the number of decided ones does not depend on what is seen in them.
- None of them was used for the threshold, and none has patches in the memory bank, from training or from teaching.
- Images without a decision are not counted, and copies of an image count as one image.

This module does not import torch, which takes seconds.
"""

from scipy.stats import beta, mannwhitneyu, nbinom

CONFIDENCE = 0.95


def at_most(count: int, images: int) -> float:
    """Return the upper limit of a rate, with a confidence of 95 %, if ``count`` of ``images`` images are hits.

    It is the one-sided limit of Clopper and Pearson (Biometrika 1934), in [0, 1]; 1 for no images.
    """
    return float(beta.ppf(CONFIDENCE, count + 1, images - count)) if count < images else 1.0


def at_least(count: int, images: int) -> float:
    """Return the lower limit of a rate, with a confidence of 95 %, see :func:`at_most`; 0 for no images."""
    return 1 - at_most(images - count, images)


def more_images(count: int, images: int, rate: float) -> int:
    """Return how many more images, none of them a hit, bring the limit of :func:`at_most` down to a rate above 0."""
    # n images are enough if, in at least 95 % of cases, the (count + 1)-th hit comes after the n-th image
    enough = int(nbinom.isf(1 - CONFIDENCE, count + 1, rate)) + count + 1
    return max(0, enough - images)


def score_lower(decided: list[float], others: list[float]) -> bool:
    """Tell whether images score lower than others by more than chance explains: they are not a random sample then.

    This is a one-sided Mann-Whitney test at the level of 5 %. The result is false if either list is empty.
    """
    if not decided or not others:
        return False
    return bool(mannwhitneyu(decided, others, alternative="less").pvalue < 1 - CONFIDENCE)
