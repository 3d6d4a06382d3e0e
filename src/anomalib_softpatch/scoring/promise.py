# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What decisions of people about scored images allow to promise: a limit of a rate that holds with 95 % confidence.

Of ``n`` good images, ``k`` are called anomalous. The share of all good images that is called anomalous is then at most
the upper limit of Clopper and Pearson (The Use of Confidence or Fiducial Limits, Biometrika 1934). Whatever the true
share is, at most 5 % of such promises are broken. The same limit for missed defects gives the share that is found.

This takes four things:

- The decided images are drawn at random from those that the promise is about, or, for good images, are the most
  suspicious ones: of ``n`` of ``N`` good images, of which ``K`` are above the threshold, these have ``min(K, n)``, and
  the limit for ``min(K, n)`` of ``n`` is never below that for ``K`` of ``N``.
- Of images drawn at random, how many are decided does not depend on what is seen in them.
- None of them set the threshold, and the patches of none are in the memory bank, from training or from teaching.
- Images that were not decided are not counted, and copies of an image are one image.

No torch is imported: machines that run exported files may not have the time for it.
"""

from scipy.stats import beta, mannwhitneyu, nbinom

CONFIDENCE = 0.95


def at_most(count: int, images: int) -> float:
    """Return the rate that is not exceeded, with a confidence of 95 %, where ``count`` of some images have something.

    It is the one-sided upper limit of Clopper and Pearson (Biometrika 1934), in [0, 1]; 1 for no images.
    """
    return float(beta.ppf(CONFIDENCE, count + 1, images - count)) if count < images else 1.0


def at_least(count: int, images: int) -> float:
    """Return the rate that is reached, with a confidence of 95 %, see :func:`at_most`; 0 for no images."""
    return 1 - at_most(images - count, images)


def more_images(count: int, images: int, rate: float) -> int:
    """Return how many more images, none of which has it, :func:`at_most` needs to be no more than a rate above 0."""
    # n images are enough where the (count + 1)-th one that has it comes later than the n-th in at least 95 % of cases
    enough = int(nbinom.isf(1 - CONFIDENCE, count + 1, rate)) + count + 1
    return max(0, enough - images)


def score_lower(decided: list[float], others: list[float]) -> bool:
    """Tell whether images score lower than others by more than chance explains: they are not drawn from the same.

    It is a one-sided test of Mann and Whitney at the level of 5 %; false if there are none to compare.
    """
    if not decided or not others:
        return False
    return bool(mannwhitneyu(decided, others, alternative="less").pvalue < 1 - CONFIDENCE)
