# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Support radii and their scale against NumPy in float64."""

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_softpatch.components import FeatureStore, support_radii
from anomalib_softpatch.components.memory_bank import DenoisingMemoryBank
from anomalib_softpatch.components.support_radii import calibrate
from samples import random_features

# The package has a function of the same name
module = importlib.import_module("anomalib_softpatch.components.support_radii")


def store_of(features, **options):
    store = FeatureStore(**options)
    store.append(features)
    return store


def window(position, length, radius):
    """Positions up to a distance away in one direction, shifted inward at the border."""
    size = min(2 * radius + 1, length)
    start = min(max(position - radius, 0), length - size)
    return slice(start, start + size)


def distances_to_images(features, index, neighborhood):
    """Distance of a patch to the nearest one of each image within its window, in float64."""
    _, height, width, _ = features.shape
    image, row, column = np.unravel_index(index, features.shape[:3])
    rows = slice(None) if neighborhood == "image" else window(row, height, neighborhood)
    columns = slice(None) if neighborhood == "image" else window(column, width, neighborhood)
    differences = features[:, rows, columns] - features[image, row, column]
    return np.sqrt((differences**2).sum(axis=3)).min(axis=(1, 2))


def brute_force(features, indices, groups, k, neighborhood):
    """Radii of some patches, group after group, in float64."""
    features, groups = features.double().numpy(), np.asarray(groups)
    if len(set(groups)) == 1:
        groups = np.arange(len(features))
    patches = features.shape[1] * features.shape[2]
    radii = []
    for index in indices.tolist():
        distances = distances_to_images(features, index, neighborhood)
        own = groups[index // patches]
        others = sorted(distances[groups == group].min() for group in set(groups) - {own})
        radii.append(others[min(k, len(others)) - 1] if others else 0.0)
    return np.array(radii)


def every_patch(features):
    return torch.arange(features[..., 0].numel())


@pytest.mark.parametrize("neighborhood", [0, 1, 2, 9, "image"])
@pytest.mark.parametrize("k", [1, 2, 11, 40])
def test_radii(neighborhood, k):
    """At all positions, borders included; with fewer than k others, the last image counts."""
    features = random_features(12)
    indices = every_patch(features)
    radii = support_radii(store_of(features), indices, torch.arange(12), {k: 1.0}, neighborhood)
    np.testing.assert_allclose(radii, brute_force(features, indices, range(12), k, neighborhood), rtol=1e-5)


@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_copies_count_as_one_image(neighborhood, k):
    """Near copies, too. Groups may have any numbers."""
    features = random_features(10)
    groups = torch.tensor([0, 7, 0, 2, 7, 7, 9, 2, 30, 0])
    for group in (0, 7, 2):
        members = (groups == group).nonzero().squeeze(1)
        features[members] = features[members[0]] + 0.01 * random_features(len(members), seed=group + 1)
    indices = every_patch(features)[::3]
    radii = support_radii(store_of(features), indices, groups, {k: 1.0}, neighborhood)
    np.testing.assert_allclose(radii, brute_force(features, indices, groups, k, neighborhood), rtol=1e-5)
    assert (radii > 0.1).all()


def test_the_larger_product_is_the_radius():
    """By default, the second image counts if the first is much nearer; otherwise the first counts."""
    features = random_features(12)
    features[5] = features[4] + 0.2 * random_features(1, seed=3)[0]
    indices = every_patch(features)
    radii = support_radii(store_of(features), indices, torch.arange(12), {1: 1.0, 2: 0.9}, 0)
    first, second = (brute_force(features, indices, range(12), k, 0) for k in (1, 2))
    np.testing.assert_allclose(radii, np.maximum(first, 0.9 * second), rtol=1e-5)
    assert 0 < (0.9 * second > first).mean() < 1


def test_copies_of_one_image_count_as_different_ones():
    features = random_features(1).repeat(5, 1, 1, 1)
    indices, groups = every_patch(features), torch.zeros(5, dtype=torch.long)
    for k in (1, 4, 9):
        assert (support_radii(store_of(features), indices, groups, {k: 1.0}) == 0).all()
    features += 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    radii = support_radii(store_of(features), indices, groups, {2: 1.0}, 1)
    np.testing.assert_allclose(radii, brute_force(features, indices, groups, 2, 1), rtol=1e-4)
    assert (radii > 0).all()


@pytest.mark.parametrize("k", [0, 1, 5])
def test_one_image_has_no_radii(k):
    features = random_features(1)
    radii = support_radii(store_of(features), every_patch(features), torch.zeros(1, dtype=torch.long), {k: 1.0})
    assert radii.tolist() == [0.0] * 20


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_far_from_the_origin(offset):
    """Distances keep their digits, and are 0 for copies, whose groups are not known here."""
    features = random_features(12) - 100
    features[3:6] = features[2]
    features = features + offset
    indices = every_patch(features)
    for k in (1, 2, 4):
        radii = support_radii(store_of(features), indices, torch.arange(12), {k: 1.0}, 1)
        np.testing.assert_allclose(radii, brute_force(features, indices, range(12), k, 1), rtol=1e-5)
        own = radii.view(12, -1)[2:6]
        assert (own == 0).all() if k < 4 else (own > 0).all()


@pytest.mark.parametrize("budget", [None, 0])
def test_any_order_and_place_of_the_features(budget):
    """Batches of images in any order by their keys, in memory or on disk; patches in any order, repeated ones too."""
    features = random_features(11)
    store = FeatureStore(memory_budget=budget)
    for batch in torch.tensor([7, 0, 10, 3, 4, 9, 1, 8, 2, 6, 5]).split(3):
        store.append(features[batch], [f"{image:02}" for image in batch.tolist()])
    assert (store._spill is not None) == (budget == 0)
    indices = torch.randint(220, (90,), generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 6, 6, 7])
    for neighborhood in (0, 1, "image"):
        radii = support_radii(store, indices, groups, {2: 1.0}, neighborhood)
        np.testing.assert_allclose(radii, brute_force(features, indices, groups, 2, neighborhood), rtol=1e-5)


@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
def test_small_blocks_change_nothing(neighborhood, monkeypatch):
    features = random_features(9)
    indices = every_patch(features).flip(0)
    whole = support_radii(store_of(features), indices, torch.arange(9), {2: 1.0}, neighborhood)
    monkeypatch.setattr(module, "BLOCK", 50)
    torch.testing.assert_close(
        support_radii(store_of(features), indices, torch.arange(9), {2: 1.0}, neighborhood), whole
    )


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 7),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 5),
    k=st.integers(1, 8),
    neighborhood=st.sampled_from([0, 1, 3, "image"]),
    integers=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    groups=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    seed=st.integers(0, 100),
)
def test_any_features(images, grid, channels, k, neighborhood, integers, scale, groups, seed):
    features = torch.randn(images, *grid, channels, generator=torch.Generator().manual_seed(seed))
    features = scale * (features.round() if integers else features)
    numbers = torch.tensor(groups[:images])
    indices = every_patch(features)
    radii = support_radii(store_of(features), indices, numbers, {k: 1.0}, neighborhood)
    expected = brute_force(features, indices, numbers if numbers.any() else range(images), k, neighborhood)
    np.testing.assert_allclose(radii, expected, rtol=1e-4, atol=1e-6 * scale)


def bank_of(features, share=0.1, seed=0):
    """Features in a store, some of their patches, their radii, and noise scores of all patches.

    As in a coreset, half of the patches are those that are farthest from the others.
    """
    store, patches, groups = store_of(features), every_patch(features), torch.arange(len(features))
    scores = support_radii(store, patches, groups, {2: 1.0}, 1)
    random = torch.rand(len(patches), generator=torch.Generator().manual_seed(seed))
    count = int(share * len(patches) / 2)
    random[scores.topk(count).indices] += 1
    indices = random.topk(2 * count).indices
    return store, store.rows(indices), indices, groups, scores[indices], scores.view(features.shape[:3])


def typical_scores(features, indices, radii, scores, scale, share):
    """Median in-bag and out-of-bag scores over all images, the patches with the highest noise scores, in float64."""
    images, height, width, channels = features.shape
    count = math.ceil(share * height * width)
    flat = features.double().numpy().reshape(-1, channels)
    indices, radii = indices.numpy(), radii.double().numpy()
    bank = flat[indices]
    in_bag, out_of_bag = [], []
    for image in range(images):
        places = np.argsort(-scores[image].flatten().numpy(), kind="stable")[:count] + image * height * width
        distances = np.sqrt(((flat[places][:, None] - bank) ** 2).sum(axis=2))
        in_bag.append(np.maximum(distances, scale * radii).min(axis=1).mean())
        out_of_bag.append(distances[:, indices // (height * width) != image].min(axis=1).mean())
    return np.median(in_bag), np.median(out_of_bag)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("images", [9, 20])
def test_scale_makes_training_images_look_new(images, offset):
    """In-bag scores equal out-of-bag scores, for the 1 % of patches of each image."""
    features = random_features(images, 13, 11, 6) - 100 + offset
    store, bank, indices, groups, radii, scores = bank_of(features)
    scale = calibrate(store, bank, indices, groups, radii, scores)
    assert scale != 1.0
    in_bag, out_of_bag = typical_scores(features, indices, radii, scores, scale, 0.01)
    assert in_bag == pytest.approx(out_of_bag, rel=5e-3)
    unscaled, _ = typical_scores(features, indices, radii, scores, 1.0, 0.01)
    assert unscaled != pytest.approx(out_of_bag, rel=2e-2), "otherwise the scale makes no difference"


def test_scale_is_deterministic_and_that_of_any_unit():
    features = random_features(12, 9, 9)
    first, second = calibrate(*bank_of(features)), calibrate(*bank_of(features))
    assert first == second
    assert calibrate(*bank_of(1000 * (features - 100))) == pytest.approx(calibrate(*bank_of(features - 100)), rel=1e-3)


def test_scale_does_not_follow_a_minority():
    """Defects in a few images do not change the typical image."""
    features = random_features(21, 9, 9)
    clean = calibrate(*bank_of(features))
    features[:5, 2:5, 2:5] += 50
    assert calibrate(*bank_of(features)) == pytest.approx(clean, rel=0.25)


@pytest.mark.parametrize("images", [1, 2, 6])
def test_nothing_to_scale(images):
    """One image, or all images equal."""
    features = random_features(1).repeat(images, 1, 1, 1)
    assert calibrate(*bank_of(features, share=0.5)) == 1.0


def test_every_image_twice_makes_no_difference():
    """Copies support neither each other nor the scale, so that the memory bank is that of the images once."""
    features = torch.randn(24, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    options = {"discriminators": ("knn",), "thresholds": (0.0,), "soft_weight": False, "min_images": 3}
    once = DenoisingMemoryBank(**options, coreset_sampling_ratio=0.2).fit(features)
    twice = DenoisingMemoryBank(**options, coreset_sampling_ratio=0.1).fit(features.repeat_interleave(2, dim=0))
    assert twice.groups.tolist() == [image // 2 for image in range(48)]
    scales = []
    for result, repeated in ((once, features), (twice, features.repeat_interleave(2, dim=0))):
        raw = support_radii(store_of(repeated), result.indices, result.groups, {2: 1.0}, 0)
        scales.append(float((result.radii / raw).mean()))
    assert scales[1] == pytest.approx(scales[0], rel=0.05)
