# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Limits of rates, compared with sums of the binomial distribution and, in a thousand draws, with the true rate."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from anomalib_softpatch.components.self_check import fewest_images
from anomalib_softpatch.scoring.promise import at_least, at_most, more_images, score_lower

RUNS, FEW_RUNS = 1000, 100
# If each of RUNS promises is broken with a probability of 5 %, more than this are broken in one of 10,000 cases
MOST_BROKEN = binom.isf(1e-4, RUNS, 0.05)


def chance_of_at_most(count: int, images: int, rate: float) -> float:
    return sum(math.comb(images, k) * rate**k * (1 - rate) ** (images - k) for k in range(count + 1))


@pytest.mark.parametrize(("count", "images"), [(0, 1), (0, 59), (1, 20), (7, 30), (29, 30)])
def test_the_limit_is_exact(count: int, images: int) -> None:
    """If the rate is at the limit, there are so few hits in 5 % of cases."""
    assert chance_of_at_most(count, images, at_most(count, images)) == pytest.approx(0.05)
    assert 1 - chance_of_at_most(images - count - 1, images, at_least(images - count, images)) == pytest.approx(0.05)


def test_limits_of_nothing_and_of_all() -> None:
    assert (at_most(0, 0), at_most(5, 5), at_least(0, 0), at_least(0, 5)) == (1, 1, 0, 0)
    assert at_most(0, 59) < 0.05 < at_most(0, 58)  # the rule of 59 images


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_how_many_more_images_it_takes(count: int, rate: float) -> None:
    images = next(n for n in range(count + 1, 10**4) if chance_of_at_most(count, n, rate) <= 0.05)
    assert more_images(count, count, rate) == images - count
    assert more_images(count, images - 1, rate) == 1
    assert more_images(count, images, rate) == more_images(count, images + 9, rate) == 0
    assert at_most(count, images) <= rate < at_most(count, images - 1)
    if not count:
        assert images == fewest_images(rate)


def promised(scores: np.ndarray, decided: np.ndarray, threshold: float) -> np.ndarray:
    """Return the limit of each run for the decided images, given scores of shape (runs, images)."""
    counts, images = ((scores > threshold) & decided).sum(axis=1), decided.sum(axis=1)
    limits = {pair: at_most(*pair) for pair in set(zip(counts.tolist(), images.tolist(), strict=True))}
    return np.array([limits[pair] for pair in zip(counts.tolist(), images.tolist(), strict=True)])


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("images", [30, 100])
@pytest.mark.parametrize("defects", [0, 60])
def test_at_most_5_of_100_promises_are_broken(rate: float, images: int, defects: int) -> None:
    """People decide about some of 400 good images and some defects; undecided images do not count."""
    generator = np.random.default_rng(0)
    good = generator.random((RUNS, 400))
    scores = np.concatenate([good, generator.beta(4, 1, (RUNS, defects))], axis=1)
    threshold = 1 - rate
    at_random = generator.permuted(np.arange(scores.shape[1])[None].repeat(RUNS, axis=0), axis=1)
    places = {"at random": at_random, "most suspicious first": np.argsort(-scores, axis=1).argsort(axis=1)}
    broken, looseness = {}, {}
    for order, place in places.items():
        limits = promised(good, (place < images)[:, :400], threshold)
        broken[order] = (limits < rate).sum()
        looseness[order] = limits.mean()
    assert max(broken.values()) <= MOST_BROKEN
    assert broken["most suspicious first"] <= broken["at random"]
    assert looseness["most suspicious first"] > looseness["at random"]


def test_what_breaks_promises() -> None:
    """Deciding until the limit is low enough, and deciding about the least suspicious images, break promises."""
    generator = np.random.default_rng(0)
    scores, rate = generator.random((RUNS, 400)), 0.05
    places = np.arange(400)[None].repeat(RUNS, axis=0)
    reached = np.zeros(RUNS, dtype=bool)
    for images in range(60, 401, 20):
        reached |= promised(scores, places < images, 1 - rate) < rate
    assert reached.sum() > MOST_BROKEN
    least = scores.argsort(axis=1).argsort(axis=1) < 100
    assert (promised(scores, least, 1 - rate) < rate).sum() == RUNS
    for run, low in zip(scores[:FEW_RUNS], least[:FEW_RUNS], strict=True):
        assert score_lower(run[low].tolist(), run[~low].tolist())


def test_images_drawn_at_random_seldom_look_chosen() -> None:
    scores = np.random.default_rng(0).random((FEW_RUNS, 60))
    chosen = sum(score_lower(run[:20].tolist(), run[20:].tolist()) for run in scores)
    assert chosen <= binom.isf(1e-4, FEW_RUNS, 0.05)
    assert not score_lower([], [1.0])
    assert not score_lower([1.0], [])
