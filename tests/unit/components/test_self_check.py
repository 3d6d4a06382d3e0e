# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The self-check against SciPy's tests, against written-out definitions, and with fits about which little is known."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, spearmanr

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.components.self_check import (
    LOOK,
    REFUSE,
    TRUST,
    FitFacts,
    fewest_images,
    radii_share,
    rate_interval,
    repeatability,
    same_place_share,
    self_check,
)
from anomalib_softpatch.models import SoftPatchModel

PLUS = {"discriminators": ("knn",), "thresholds": (0.0,), "soft_weight": False, "min_images": "auto", "neighborhood": 1}


def facts(scores, **more):
    known = {
        "images": len(scores),
        "different": len(scores),
        "scores": tuple(scores),
        "repeatability": 0.5,
        "removed": 0.0,
        "radii": 0.3,
        "same_place": 0.8,
        "same_place_by_chance": 0.02,
    }
    return FitFacts(**(known | more))


@pytest.mark.parametrize(("count", "images"), [(0, 6), (1, 20), (3, 44), (17, 128), (128, 128)])
def test_the_interval_is_that_of_scipy(count, images):
    expected = binomtest(count, images).proportion_ci(0.95, method="exact")
    assert rate_interval(count, images) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3])
def test_the_fewest_images_contain_one_of_the_rate(rate):
    count = fewest_images(rate)
    assert (1 - rate) ** count <= 0.05 < (1 - rate) ** (count - 1)


@pytest.mark.parametrize("images", [29, 44, 128, 400])
def test_good_images_are_trusted_as_often_as_the_level_requires(images):
    """A single group of scores is rarely taken for two, and the interval is right."""
    generator = np.random.default_rng(images)
    trusted, held = 0, 0
    for _ in range(200):
        scores = np.exp(generator.normal(3, 0.1, images))
        threshold = false_alarm_threshold(torch.from_numpy(scores), 0.05)
        check = self_check(facts(scores.tolist()), threshold, 0.05)
        trusted += check.verdict == TRUST
        rate = (np.exp(generator.normal(3, 0.1, 20000)) > threshold).mean()
        held += check.interval[0] <= rate <= check.interval[1]
        assert check.above == (scores > threshold).sum()
    assert trusted >= 180
    assert held >= 180


def test_a_second_group_is_looked_at():
    generator = np.random.default_rng(0)
    scores = np.exp(np.concatenate((generator.normal(3, 0.1, 70), generator.normal(4, 0.1, 30)))).tolist()
    threshold = false_alarm_threshold(torch.tensor(scores), 0.05)
    check = self_check(facts(scores), threshold, 0.05)
    assert (check.verdict, check.second_group) == (LOOK, True)
    assert check.above == 30
    assert "30 of 100" in check.reason
    assert "second group" in " ".join(check.lines)
    # If the threshold does not come from a share of false alarms, no number is expected
    assert self_check(facts(scores), threshold, None).verdict == TRUST


@pytest.mark.parametrize("images", [40, 100])
def test_the_second_group_is_that_of_scipys_test(images):
    """More images above the threshold than twice the share explains, at the level of 5 %."""
    found = []
    for above in range(images + 1):
        scores = [2.0] * above + [1.0] * (images - above)
        significant = binomtest(above, images, 0.1, alternative="greater").pvalue < 0.05
        assert self_check(facts(scores), 1.5, 0.05).second_group == significant
        found.append(significant)
    assert set(found) == {True, False}


def test_few_images_are_refused_with_the_number_that_it_takes():
    scores = [1.0 + index / 100 for index in range(28)]
    check = self_check(facts(scores), 2.0, 0.05)
    assert check.verdict == REFUSE
    assert "takes 29" in check.reason
    assert self_check(facts([*scores, 1.3]), 2.0, 0.05).verdict == TRUST


@pytest.mark.parametrize(("images", "about"), [(29, False), (100, False), (1000, True)])
def test_about_is_only_said_within_a_factor_of_two(images, about):
    scores = np.linspace(1, 2, images)
    check = self_check(facts(scores.tolist()), float(np.quantile(scores, 0.95)), 0.05)
    assert ("about 5 %" in check.false_alarms) == about
    assert about == (check.interval[0] >= 0.025 and check.interval[1] <= 0.1)


def test_what_is_not_known_is_not_said():
    check = self_check(facts([], repeatability=None, same_place=None), float("nan"), 0.05)
    assert (check.verdict, check.interval) == (REFUSE, None)
    assert "not known" in check.false_alarms
    text = " ".join(check.lines)
    assert "correlation" not in text
    assert "aligned" not in text
    json.dumps(check.record, allow_nan=False)


def test_large_images_are_mentioned():
    scores = np.linspace(1, 2, 100).tolist()
    assert "5.9 times as large" in self_check(facts(scores), 1.95, 0.05, scale=1500 / 256).lines[-1]
    assert "as large" not in self_check(facts(scores), 1.95, 0.05, scale=1.0).lines[-1]


def store_of(features):
    store = FeatureStore()
    store.append(features)
    return store


def test_repeatability_is_spearmans_of_two_halves_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(14, 4, 5, 6, generator=generator) * torch.linspace(0.5, 2, 14)[:, None, None, None]
    groups = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12])
    result = DenoisingMemoryBank(**PLUS, coreset_sampling_ratio=0.3).fit(features)
    images = torch.arange(13)
    actual = repeatability(store_of(features), result, groups, result.scores.fused, images)
    half = set(torch.randperm(13, generator=torch.Generator().manual_seed(0))[:6].tolist())
    bank, radii = result.features.double().numpy(), result.radii.double().numpy()
    group_of_row = groups[result.indices // 20].numpy()
    in_half = np.array([group in half for group in group_of_row])
    scores = ([], [])
    for image in images.tolist():
        noisiest = result.scores.fused[image].flatten().argsort(descending=True)[:2]
        queries = features[image].reshape(20, 6)[noisiest].double().numpy()
        distances = np.maximum(np.linalg.norm(queries[:, None] - bank[None], axis=2), radii)
        for rows, part in zip((~in_half, in_half), scores, strict=True):
            part.append(distances[:, rows & (group_of_row != int(groups[image]))].min(axis=1).max())
    assert actual == pytest.approx(spearmanr(*scores).statistic)


def test_same_place_of_aligned_and_of_shuffled_images():
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(1, 16, 16, 8, generator=generator)
    aligned = grid + 0.1 * torch.randn(6, 16, 16, 8, generator=generator)
    share, chance = same_place_share(store_of(aligned))
    assert share == 1
    inside = [[max(0, i - 2), min(15, i + 2)] for i in range(16)]
    assert chance == pytest.approx((sum(high - low + 1 for low, high in inside) / 256) ** 2)
    flat = aligned.reshape(6, 256, 8)
    shuffled = torch.stack([image[torch.randperm(256, generator=generator)] for image in flat]).reshape(aligned.shape)
    assert same_place_share(store_of(shuffled))[0] == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("shape", [(1, 5, 5), (4, 1, 1), (4, 1, 2)])
def test_no_places_to_compare(shape):
    assert same_place_share(store_of(torch.rand(*shape, 3)))[0] is None


def test_radii_share_by_hand():
    bank = torch.tensor([[0.0], [1.0], [3.0]])
    assert radii_share(bank, torch.tensor([1.5, 0.5, 0.0]), torch.tensor([0, 1, 2])) == pytest.approx(1 / 3)
    assert radii_share(bank, torch.tensor([1.5, 0.5, 0.0]), torch.tensor([0, 0, 2])) == 0
    assert radii_share(bank, torch.zeros(3), torch.tensor([0, 1, 2])) == 0


@pytest.mark.parametrize(
    ("features", "options"),
    [
        (torch.randn(2, 6, 6, 8), PLUS),
        (torch.ones(5, 6, 6, 8), PLUS),
        (torch.randn(1, 6, 6, 8), {"thresholds": (0.0,), "soft_weight": False}),
        (torch.randn(4, 6, 6, 8), {"thresholds": (0.0,), "soft_weight": False}),
        (torch.randn(1, 6, 6, 8).expand(4, 6, 6, 8), PLUS),
        (torch.randn(5, 6, 6, 8), {"discriminators": ("lof", "gaussian"), "thresholds": (0.15, 0.5)}),
    ],
    ids=["two images", "constant images", "one image", "no scores", "copies of one image", "two banks"],
)
def test_no_fit_is_broken(features, options):
    model = SoftPatchModel(["layer1"], "test_resnet", pre_trained=False)
    model.memory_bank_builder = DenoisingMemoryBank(**options, coreset_sampling_ratio=0.2)
    model.feature_store.append(features)
    model.fit()
    known = model.fit_facts
    assert known is not None
    assert known == FitFacts(**(json.loads(json.dumps(asdict(known), allow_nan=False)) | {"scores": known.scores}))
    threshold = false_alarm_threshold(model.out_of_bag.image_scores, 0.05)
    check = self_check(known, threshold, 0.05)
    assert check.verdict == REFUSE
    json.dumps(check.record, allow_nan=False)


def test_copies_count_once():
    features = torch.randn(30, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    model = SoftPatchModel(["layer1"], "test_resnet", pre_trained=False)
    model.memory_bank_builder = DenoisingMemoryBank(**PLUS, coreset_sampling_ratio=0.2)
    model.feature_store.append(torch.cat((features, features[:5])))
    model.fit()
    assert (model.fit_facts.images, model.fit_facts.different, len(model.fit_facts.scores)) == (35, 30, 30)
    assert "30 different images (35 with copies)" in self_check(model.fit_facts, 9.0, 0.05).lines[1]
