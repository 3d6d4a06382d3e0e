# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What decisions of people about scored images allow to promise: a limit of a rate that holds with 95 % confidence.

No torch is imported: machines that run exported files may not have the time for it.

Of ``n`` good images, ``k`` are called anomalous. The share of all good images that is called anomalous is then at most
the upper limit of Clopper and Pearson (The Use of Confidence or Fiducial Limits, Biometrika 1934). Whatever the true
share is, at most 5 % of such promises are broken.

This takes four things:

- The decided images are drawn at random from those that the promise is about, or are the most suspicious ones. The
  latter are called anomalous more often. Let ``K`` of all ``N`` good images of a folder be above the threshold. Of the
  ``n`` good ones with the highest scores, these are ``min(K, n)``. The limit for ``min(K, n)`` of ``n`` is never below
  that for ``K`` of ``N``. The promise then holds, and is looser than need be, however many images are decided. What
  people skipped because it looked clear is neither.
- Of images drawn at random, how many are decided does not depend on what is seen in them. Who goes on until the limit
  is low enough breaks more than 5 % of the promises.
- None of them set the threshold, and the patches of none are in the memory bank, from training or from teaching. Such
  images score lower than new ones.
- Images that were not decided are not counted, and copies of an image are one image.

The same limit for missed defects gives the share of defects that is found at least. The most suspicious images are
found more often. So there only images drawn at random count.
"""

from scipy.stats import beta, mannwhitneyu, nbinom

CONFIDENCE = 0.95


def at_most(count: int, images: int) -> float:
    """Return the rate that is not exceeded, with a confidence of 95 %, where so many of some images have something.

    Args:
        count: How many of the images have it.
        images: How many images there are.

    Returns:
        The one-sided upper limit of Clopper and Pearson (Biometrika 1934), in [0, 1]; 1 for no images.
    """
    return float(beta.ppf(CONFIDENCE, count + 1, images - count)) if count < images else 1.0


def at_least(count: int, images: int) -> float:
    """Return the rate that is reached, with a confidence of 95 %, see :func:`at_most`.

    Args:
        count: How many of the images have it.
        images: How many images there are.

    Returns:
        The one-sided lower limit, in [0, 1]; 0 for no images.
    """
    return 1 - at_most(images - count, images)


def more_images(count: int, images: int, rate: float) -> int:
    """Return how many more images it takes to promise a rate, if none of them has it.

    Args:
        count: How many of the images have it.
        images: How many images there are.
        rate: Rate to promise, above 0 and below 1.

    Returns:
        The smallest number for which :func:`at_most` is not above the rate; 0 if it is not now.
    """
    # n images are enough where the (count + 1)-th one that has it comes later than the n-th in at least 95 % of cases
    enough = int(nbinom.isf(1 - CONFIDENCE, count + 1, rate)) + count + 1
    return max(0, enough - images)


def score_lower(decided: list[float], others: list[float]) -> bool:
    """Whether images score lower than others by more than chance explains: they are not drawn from the same.

    Args:
        decided: Scores of images.
        others: Scores of other images.

    Returns:
        The verdict of a one-sided test of Mann and Whitney at the level of 5 %; false if there are none to compare.
    """
    if not decided or not others:
        return False
    return bool(mannwhitneyu(decided, others, alternative="less").pvalue < 1 - CONFIDENCE)
