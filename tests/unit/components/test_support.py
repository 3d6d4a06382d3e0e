# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How much can go before normal images look unusual, and how far a patch can vouch: NumPy's float64 is the measure."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_softpatch.components import DenoisingMemoryBank, support
from anomalib_softpatch.components.memory_bank import LARGEST_SHARES
from anomalib_softpatch.components.support import (
    SHARES,
    bearable_share,
    exceptional_distances,
    support_curve,
    support_distances,
)
from samples import random_features

AUTO = {"discriminators": ("simplified_lof",), "thresholds": ("auto", "auto"), "soft_weight": False}


def aligned(images: int = 20, grid: int = 8, channels: int = 16) -> torch.Tensor:
    """Every position looks the same in all images, but for two defects and some grain."""
    generator = torch.Generator().manual_seed(0)
    base = 5 * torch.randn(1, grid, grid, channels, generator=generator)
    features = base + 0.3 * torch.randn(images, grid, grid, channels, generator=generator)
    features[3, 2:4, 2:4] += 10
    features[11, 5:7, 1:3] -= 10
    return features


def unaligned(images: int = 21, grid: int = 8, channels: int = 16) -> torch.Tensor:
    """Objects on a plain ground, anywhere in the image, whose patches three images have each, at other positions."""
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(images, grid, grid, channels)
    objects = 5 * torch.randn(images // 3, 16, channels, generator=generator)
    for number in range(images):
        row, column = torch.randint(grid - 3, (2,), generator=generator).tolist()
        shown = objects[number % len(objects)][torch.randperm(16, generator=generator)]
        features[number, row : row + 4, column : column + 4] = shown.view(4, 4, channels)
    return features + 0.3 * torch.randn(features.shape, generator=generator)


def brute_curve(features: torch.Tensor, scores: torch.Tensor, shares: tuple[float, ...]) -> np.ndarray:
    images, height, width, channels = features.shape
    patches = height * width
    flat, score = features.double().numpy().reshape(-1, channels), scores.numpy().reshape(-1)
    owner = np.arange(len(flat)) // patches
    curve = np.empty((images, len(shares)))
    for column, share in enumerate(shares):
        stays = np.argsort(score)[: max(1, int(len(flat) * (1 - share)))]
        for image in range(images):
            own = np.flatnonzero(owner == image)
            upper = own[np.argsort(-score[own])][: max(1, patches // 4)]
            queries = upper[:: max(1, len(upper) // support.QUERIES)]
            others = stays[owner[stays] != image]
            nearest = [np.linalg.norm(flat[others] - flat[query], axis=1).min(initial=np.inf) for query in queries]
            curve[image, column] = max(nearest)
    return curve


@pytest.mark.parametrize(("images", "height", "width"), [(2, 4, 5), (5, 1, 1), (6, 8, 9), (12, 3, 4)])
@pytest.mark.parametrize("block", [support.BLOCK, 50])
def test_curve_equals_brute_force(
    images: int, height: int, width: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "BLOCK", block)
    features = random_features(images, height, width)
    scores = torch.rand(images, height, width, generator=torch.Generator().manual_seed(1))
    curve = support_curve(features, scores)
    assert curve.shape == (images, len(SHARES))
    np.testing.assert_allclose(curve, brute_curve(features, scores, SHARES), rtol=1e-4)


def test_curve_of_some_shares() -> None:
    features, shares = random_features(6), (0.0, 0.3, 0.6, 0.9, 0.99)
    scores = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(
        support_curve(features, scores, shares), brute_curve(features, scores, shares), rtol=1e-4
    )


def test_curve_is_infinite_where_only_the_own_patches_stay() -> None:
    scores = torch.cat((torch.zeros(1, 4, 5), torch.ones(1, 4, 5))) + 0.1 * torch.rand(2, 4, 5)
    curve = support_curve(random_features(2), scores, (0.0, 0.5))
    assert curve.isinf().tolist() == [[False, True], [False, False]]


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(2, 8),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 20),
    duplicates=st.integers(0, 7),
    ties=st.booleans(),
)
def test_curve_never_falls(images: int, grid: tuple[int, int], seed: int, duplicates: int, ties: bool) -> None:
    features = random_features(images, *grid, seed=seed)
    features[1 : 1 + duplicates] = features[:1]
    scores = torch.rand(images, *grid, generator=torch.Generator().manual_seed(seed))
    curve = support_curve(features, scores.round() if ties else scores)
    assert not curve.isnan().any()
    assert (curve[:, 1:] >= curve[:, :-1]).all()
    assert 0 <= bearable_share(curve, 0.35) <= 0.35


def curve_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (curve_of([1.0, 1.0, 1.0]), 0.4),
        (curve_of([1.0, 1.25, 1.25]), 0.4),  # the growth itself is allowed
        (curve_of([1.0, 1.125, 1.625]), 0.1 + 0.3 * 0.25),
        (curve_of([1.0, 1.5, 2.0]), 0.1 * 0.5),
        (curve_of([5.0, 5.625, 8.125]), 0.1 + 0.3 * 0.25),  # whatever the unit
        (curve_of([1.0, 1.0, math.inf]), 0.1),
        (curve_of([1.0, math.inf, math.inf]), 0.0),
        (curve_of([0.0, 1.0, 1.0]), 0.0),  # all images equal
        (curve_of([math.inf, math.inf, math.inf]), 0.0),
        (curve_of([0.0, 9.0, 9.0], [1.0, 1.0, 1.0], [math.inf] * 3), 0.4),  # what cannot grow does not count
        (curve_of([1.0, 9.0, 9.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]), 0.4),  # one defective image of three
        (curve_of([1.0, 9.0, 9.0], [1.0, 1.5, 2.0], [1.0, 1.0, 1.0]), 0.1 * 0.5),
    ],
)
def test_bearable_share(curve: torch.Tensor, expected: float) -> None:
    assert bearable_share(curve, largest=1.0, growth=1.25, shares=(0.0, 0.1, 0.4)) == pytest.approx(expected)
    assert bearable_share(curve, largest=0.07, growth=1.25, shares=(0.0, 0.1, 0.4)) == pytest.approx(
        min(expected, 0.07)
    )


@pytest.mark.parametrize("growth", [1.02, 1.1, 1.3])
def test_bearable_share_equals_numpy(growth: float) -> None:
    """The first crossing of the median growth, found by NumPy's interpolation."""
    curve = (1 + torch.rand(7, len(SHARES), generator=torch.Generator().manual_seed(3)) / 20).cumprod(dim=1)
    typical = np.median(curve.double().numpy() / curve[:, :1].double().numpy(), axis=0)
    expected = np.interp(growth, typical, SHARES)
    assert bearable_share(curve, 1.0, growth) == pytest.approx(expected, rel=1e-4)


def brute_distances(features: torch.Tensor, indices: torch.Tensor, k: int) -> list[float]:
    flat = features.double().numpy()
    images, height, width, channels = flat.shape
    patches = flat.reshape(images, height * width, channels)
    found = []
    for index in indices.tolist():
        image, place = divmod(index, height * width)
        others = np.delete(patches, image, axis=0)
        nearest = np.linalg.norm(others - patches[image, place], axis=2).min(axis=1)
        found.append(np.sort(nearest)[min(k, images - 1) - 1])
    return found


@pytest.mark.parametrize("images", [2, 3, 9])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("block", [support.BLOCK, 100])
def test_support_distances_equal_brute_force(images: int, k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images: with k = 2, the only other one."""
    monkeypatch.setattr(support, "BLOCK", block)
    features = random_features(images)
    indices = torch.randperm(images * 20, generator=torch.Generator().manual_seed(0))[:25]
    np.testing.assert_allclose(
        support_distances(features, indices, k), brute_distances(features, indices, k), rtol=1e-4
    )


def test_only_exceptional_distances_stay() -> None:
    """The largest of images 0, 2, 3, 7 are 4, 1, 2, 9: the lower median is 2, that of the deviations is 1."""
    distances = torch.tensor([0.5, 4.0, 1.0, 2.0, 2.0, 0.0, 9.0, 3.4, 3.5])
    images = torch.tensor([0, 0, 2, 3, 3, 7, 7, 7, 7])
    assert exceptional_distances(distances, images).tolist() == [0, 4, 0, 0, 0, 0, 9, 0, 3.5]
    assert exceptional_distances(torch.full((6,), 3.0), torch.arange(6)).tolist() == [0] * 6
    assert len(exceptional_distances(torch.empty(0), torch.empty(0, dtype=torch.long))) == 0


def test_one_copy_of_a_defect_does_not_vouch_for_it() -> None:
    features = random_features(9)
    features[2, 1, 1] = features[6, 3, 4] = 50
    defects = torch.tensor([2 * 20 + 6, 6 * 20 + 19])
    assert support_distances(features, defects, 1).tolist() == pytest.approx([0, 0], abs=0.1)
    assert (support_distances(features, defects) > 90).all()


def test_many_patches_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a patch is compared with every few of another image, and seems as far or farther."""
    features, indices = random_features(5), torch.arange(100)
    exact = support_distances(features, indices)
    for products in (len(indices) * 100 * 8 / 3, 1):
        monkeypatch.setattr(support, "LARGEST_PRODUCT", products)
        thinned = support_distances(features, indices)
        assert (thinned >= exact - 1e-3).all()
        assert (thinned > exact + 0.1).any()
        assert thinned.isfinite().all()
    monkeypatch.undo()
    some = torch.arange(0, 20, 20)  # of 20 patches, the first
    expected = brute_distances(features[:, :1, :1], torch.arange(5), 2)
    monkeypatch.setattr(support, "LARGEST_PRODUCT", 1)
    np.testing.assert_allclose(support_distances(features, some)[0], expected[0], rtol=1e-4)


def test_aligned_images_bear_much() -> None:
    features = aligned()
    result = DenoisingMemoryBank(**AUTO, coreset_sampling_ratio=0.3).fit(features)
    for share, largest in zip(result.shares, LARGEST_SHARES, strict=True):
        assert 0.9 * largest <= share <= largest
    assert result.features.shape[1] == 16
    assert torch.equal(result.features, features.flatten(0, 2)[result.indices])
    assert not result.kept[:, 3, 2:4, 2:4].any()
    assert not result.kept[:, 11, 5:7, 1:3].any()
    for kept, share in zip(result.kept, result.shares, strict=True):
        assert 1 - kept.float().mean() == pytest.approx(share, abs=1e-3)


def test_objects_in_any_direction_bear_nothing() -> None:
    """All patches stay, and those of little support say by a further coordinate how far other images vouch for them."""
    features = unaligned()
    result = DenoisingMemoryBank(**AUTO, coreset_sampling_ratio=0.3).fit(features)
    assert result.shares == (0.0, 0.0)
    assert result.kept.all()
    assert result.features.shape[1] == 17
    assert torch.equal(result.features[:, :-1], features.flatten(0, 2)[result.indices])
    distances = np.array(brute_distances(features, result.indices, 2))
    images = result.indices.numpy() // 64
    largest = sorted(distances[images == image].max() for image in set(images.tolist()))
    typical = np.quantile(largest, 0.5, method="lower")
    deviation = 1.4826 * np.quantile(abs(np.array(largest) - typical), 0.5, method="lower")
    exceptional = distances > typical + deviation
    assert 0 < exceptional.sum() < len(distances) / 2
    np.testing.assert_allclose(result.features[:, -1], np.where(exceptional, distances, 0), rtol=1e-4)


def test_a_given_share_is_no_auto() -> None:
    """Of two banks, each is decided for by itself."""
    options = AUTO | {"thresholds": ("auto", 0.2), "coreset_sampling_ratio": 0.3}
    shares = DenoisingMemoryBank(**options).fit(aligned()).shares
    assert shares[0] == pytest.approx(0.35)
    assert shares[1] == 0.2
    for features in (aligned(), unaligned()):
        fixed = DenoisingMemoryBank(**AUTO | {"thresholds": (0.1,)}).fit(features)
        assert fixed.shares == (0.1,)
        assert fixed.features.shape[1] == 16


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(2, 11),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    thresholds=st.lists(st.just("auto") | st.floats(0, 0.9), min_size=1, max_size=2),
    scale=st.sampled_from([0.0, 1e-20, 1e-6, 1.0, 1e6]),
    duplicates=st.integers(0, 10),
    seed=st.integers(0, 20),
)
def test_any_features(
    images: int, grid: tuple[int, int], thresholds: list, scale: float, duplicates: int, seed: int
) -> None:
    """However few or equal the images, a fit ends with finite banks of what was kept."""
    features = scale * random_features(images, *grid, channels=4, seed=seed)
    features[1 : 1 + duplicates] = features[:1]
    options = AUTO | {"thresholds": tuple(thresholds), "coreset_sampling_ratio": 1.0}
    result = DenoisingMemoryBank(**options).fit(features)
    assert result.features.isfinite().all()
    assert torch.equal(result.features[:, :4], features.reshape(-1, 4)[result.indices])
    assert (result.features[:, 4:] >= 0).all()
    for threshold, share, kept, (start, stop) in zip(
        thresholds, result.shares, result.kept, result.bank_ranges, strict=True
    ):
        assert threshold in {"auto", share}
        assert 0 <= share <= max(LARGEST_SHARES) or threshold == share
        assert kept.flatten()[result.indices[start:stop]].all()
    if result.features.shape[1] == 5:
        assert not any(share for threshold, share in zip(thresholds, result.shares, strict=True) if threshold == "auto")
