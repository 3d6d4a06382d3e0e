# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Teaching of a memory bank against brute force, and its effects on images."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore, MemoryBank, support_radii
from anomalib_softpatch.components.search import NearestNeighborSearch
from anomalib_softpatch.components.teaching import (
    LARGEST_RAISE,
    DefectBank,
    Taught,
    calibrate_defects,
    from_plain,
    make_lesson,
    score_again,
    score_patches_by_banks,
    teach,
    to_plain,
)
from anomalib_softpatch.images.decisions import ADDED, DEFECT, NORMAL, SET_ASIDE
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel

IMAGES, HEIGHT, WIDTH, CHANNELS = 24, 6, 5, 16
DEFECTIVE, VARIANT = 3, 7  # images of the training set


def make_features(seed=0):
    """Images that differ only by noise; one has a defect in two patches, and one is another variant as a whole."""
    generator = torch.Generator().manual_seed(seed)
    pattern = 3 * torch.randn(HEIGHT, WIDTH, CHANNELS, generator=torch.Generator().manual_seed(100))
    features = pattern + 0.3 * torch.randn(IMAGES, HEIGHT, WIDTH, CHANNELS, generator=generator)
    features[DEFECTIVE, 2, 1:3] += 4 * defect()
    features[VARIANT] += variant()
    return features


def defect():
    return torch.nn.functional.normalize(torch.ones(CHANNELS), dim=0) * 2


def variant():
    return torch.linspace(-3, 3, CHANNELS)


class Fitted(SoftPatchModel):
    """A fitted model whose features are given."""

    def __init__(self, num_neighbors=1, **options):
        builder = DenoisingMemoryBank(
            discriminators=("knn",), coreset_sampling_ratio=0.3, soft_weight=False, neighborhood=1, **options
        )
        super().__init__(
            ["layer1"], "test_resnet", pre_trained=False, memory_bank_builder=builder, num_neighbors=num_neighbors
        )


@pytest.fixture(scope="module", params=[{"min_images": "auto", "thresholds": (0.0, 0.0)}, {"min_images": 1}])
def model(request):
    model = Fitted(**request.param)
    model.feature_store.append(make_features(), [f"{number:03}" for number in range(IMAGES)])
    model.fit((64, 64))
    return model


@pytest.fixture(scope="module")
def record(model):
    return model.record


def lesson(record, verdict, image=None, features=None, name=None, region=None, most=None):
    features = make_features()[image] if features is None else features
    group = -1 if image is None else int(record.group_of_image[image])
    search = NearestNeighborSearch(record.bank)
    return make_lesson(record, search, verdict, name or f"{verdict} {image}", "path", features, group, region, most)


def brute_force(bank, queries, left_out=None):
    """Least mutual reachability distances in float64."""
    queries, features = queries.double().numpy(), bank.features.double().numpy()
    distances = np.linalg.norm(queries[:, None] - features[None], axis=2)
    if bank.radii is not None:
        distances = np.maximum(distances, bank.radii.double().numpy()[None])
    if left_out is not None:
        distances[:, left_out.numpy()] = np.inf
    return distances.min(axis=1)


def test_the_record_has_the_scores_of_images_as_if_they_were_new(record):
    features = make_features()
    for number in (0, DEFECTIVE, IMAGES - 1):
        group = int(record.maps.groups[number])
        image = record.group_of_image.tolist().index(group)
        expected = brute_force(record.bank, features[image].flatten(0, 1), record.groups == group)
        np.testing.assert_allclose(record.maps.scores[number, 0].flatten(), expected, rtol=1e-4)


def test_nothing_taught_is_the_fit_bit_by_bit(record):
    taught = teach(record, [])
    for name in ("features", "weights"):
        assert torch.equal(getattr(taught.bank, name), getattr(record.bank, name))
    assert torch.equal(
        taught.bank.radii, torch.zeros(len(taught.groups)) if record.bank.radii is None else record.bank.radii
    )
    assert taught.bank.bank_ranges == record.bank.bank_ranges
    assert not len(taught.defects)


def test_any_order_gives_the_same(record):
    lessons = [
        lesson(record, NORMAL, VARIANT),
        lesson(record, DEFECT, DEFECTIVE),
        lesson(record, ADDED, features=make_features(5)[0], name="new"),
        lesson(record, SET_ASIDE, 11),
    ]
    first = teach(record, lessons)
    for order in permutations(lessons):
        other = teach(record, order)
        for name in ("features", "weights", "radii"):
            assert torch.equal(getattr(first.bank, name), getattr(other.bank, name))
        assert torch.equal(first.defects, other.defects)
        assert torch.equal(first.groups, other.groups)


@pytest.mark.parametrize("verdict", [SET_ASIDE, DEFECT])
def test_an_image_leaves_with_its_rows_and_supports_nothing(record, verdict):
    taught = teach(record, [lesson(record, verdict, DEFECTIVE)])
    group = int(record.group_of_image[DEFECTIVE])
    assert (record.groups == group).any()
    assert not (taught.groups == group).any()
    if record.support is None or verdict == DEFECT:
        return
    # As if the fit had not known the image: the same rows with radii of the other images, on the fit's scale
    stays = record.groups != group
    others = [image for image in range(IMAGES) if image != DEFECTIVE]
    store = FeatureStore()
    store.append(make_features()[others])
    image_of_row = torch.tensor([others.index(int(image)) for image in record.groups[stays]])
    indices = image_of_row * HEIGHT * WIDTH + record.places[stays]
    expected = record.support.scale * support_radii(store, indices, torch.arange(IMAGES - 1), record.factors, 1)
    torch.testing.assert_close(taught.bank.radii, expected)


def test_an_image_called_normal_is_normal(record):
    """The image itself and another one that shows the same become normal; a defect does not."""
    group = int(record.group_of_image[VARIANT])
    like = make_features(9)[VARIANT].flatten(0, 1)
    defective = make_features()[DEFECTIVE].flatten(0, 1)
    own = torch.arange(len(record.groups)) < 0
    before, with_defect = (brute_force(record.bank, each, own) for each in (like, defective))
    taught = teach(record, [lesson(record, NORMAL, VARIANT)])
    rows = taught.groups == group
    assert (taught.bank.radii[rows] == 0).all()
    scores = brute_force(taught.bank, make_features()[VARIANT].flatten(0, 1))
    assert scores.max() <= 0.5 * record.typical * 1.001
    assert brute_force(taught.bank, like).max() < 0.6 * before.max()
    if record.support is not None:
        np.testing.assert_allclose(brute_force(taught.bank, defective).max(), with_defect.max(), rtol=1e-5)


def test_a_defect_and_similar_ones_are_found(record):
    """A weak defect becomes one, and so does another image with the same patch."""
    weak = make_features(5)[0]
    weak[4, 2] += 1.2 * defect()
    again = make_features(6)[0]
    again[1, 1] += weak[4, 2] - make_features(5)[0][4, 2] + make_features(5)[0][4, 2] - again[1, 1]
    region = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    region[4, 2] = True
    taught = teach(record, [lesson(record, DEFECT, features=weak, name="weak", region=region)])
    assert len(taught.defects) == 1
    torch.testing.assert_close(taught.defects[0], weak[4, 2])
    threshold = 10.0
    for image, anomalous in ((weak, True), (again, True), (make_features(7)[0], False)):
        queries = image.flatten(0, 1)
        normal = score_patches_by_banks(NearestNeighborSearch(taught.bank), queries)[:1]
        raised = defect_bank(taught.defects, threshold).score(normal, queries)
        assert bool((raised > threshold).any()) == anomalous


def defect_bank(defects, threshold, scale=1.0):
    return DefectBank(defects, torch.full((len(defects),), scale), torch.tensor(threshold))


def test_scores_by_defects_by_hand():
    """The score is capped where they coincide, and 0 where the bank is nearer or the patch is too normal."""
    queries = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0]])
    normal = torch.tensor([[2.0, 2.0, 1.0, 3.0]])
    bank = defect_bank(torch.tensor([[1.0, 0.0]]), 5.0)
    assert bank.score(normal, queries).tolist() == [[10.0, 5 * LARGEST_RAISE, 0.0, 0.0]]
    assert defect_bank(bank.features, 5.0, scale=1.6).score(normal, queries).tolist() == [[6.25, 20.0, 0.0, 0.0]]


def test_a_marked_defect_is_found_wherever_it_is(record):
    """Even if more patches of the image are less normal than the defect."""
    generator = torch.Generator().manual_seed(0)
    defects = torch.randn(1, CHANNELS, generator=generator)
    queries = torch.randn(100, CHANNELS, generator=generator)
    queries[60] = defects + 0.001
    normal = torch.full((1, 100), 2.0)
    normal[0, :40] = 3.0
    assert defect_bank(defects, 5.0).score(normal, queries).nonzero().tolist() == [[0, 60]]


def test_defects_add_few_false_alarms(record):
    """Even if patches called defects look like normal ones; those that do not are found."""
    generator = torch.Generator().manual_seed(3)
    normal_patches = make_features(20).flatten(0, 2)[torch.randperm(IMAGES * HEIGHT * WIDTH, generator=generator)[:40]]
    real = make_features(5)[0][2, 2] + 4 * defect()
    maps = record.maps
    scores = maps.scores[:, 0].flatten(1).gather(1, maps.places)
    defects = torch.cat((normal_patches, real[None]))
    taught = Taught(record.bank, record.groups, defects, torch.ones(len(defects)))
    scales = calibrate_defects(taught, maps, scores, 0.05)
    bank = DefectBank(defects, scales, torch.tensor(5.0))
    assert scales[-1] < scales[:-1].median()
    search_bank = record.bank

    def is_defect(image):
        queries = image.flatten(0, 1)
        return bool(bank.score(score_patches_by_banks(NearestNeighborSearch(search_bank), queries), queries).any())

    good = [is_defect(image) for image in torch.cat([make_features(seed)[8:] for seed in range(30, 36)])]
    assert sum(good) <= 0.15 * len(good)
    bad = make_features(40)[8:]
    bad[:, 3, 3] += real - make_features(5)[0][3, 3]
    assert sum(map(is_defect, bad)) >= 0.9 * len(bad)


def test_added_images_support_each_other(record):
    """A single image of a new variant changes little; as many as the fit requires make it normal."""
    if record.support is None:
        pytest.skip("without radii any new image is normal")
    shift = variant().flip(0)
    new = [make_features(seed)[0] + shift for seed in (11, 12, 13, 14)]
    lessons = [lesson(record, ADDED, features=each, name=f"new {number}") for number, each in enumerate(new)]
    queries = new[3].flatten(0, 1)
    peaks = [brute_force(teach(record, lessons[:count]).bank, queries).max() for count in (0, 1, 3)]
    assert peaks[1] > 0.8 * peaks[0]
    assert peaks[2] < 0.6 * peaks[0]


def test_new_images_add_no_more_rows_than_allowed(record):
    assert len(lesson(record, NORMAL, features=make_features(9)[VARIANT], name="new", most=3).rows) == 3


def test_a_normal_region_does_not_change_the_rest(record):
    """A defect in the same image scores as the other images make it score."""
    region = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    region[5, 4] = True
    whole, part = (teach(record, [lesson(record, NORMAL, DEFECTIVE, region=each)]) for each in (None, region))
    if record.support is None:
        assert torch.equal(part.bank.radii, torch.zeros(len(part.bank.radii)))
        return
    rows = (part.groups == int(record.group_of_image[DEFECTIVE])).nonzero().squeeze(1)
    assert (whole.bank.radii[whole.groups == int(record.group_of_image[DEFECTIVE])] == 0).all()
    assert (part.bank.radii[rows] > 0).any()
    defect_patch = make_features()[DEFECTIVE, 2, 1][None]
    assert brute_force(part.bank, defect_patch) == pytest.approx(brute_force(record.bank, defect_patch), rel=1e-5)


def test_normal_counts_whatever_the_weights(record):
    """Even if noise scores give the rows of the image large weights."""
    weights = torch.where(record.groups == int(record.group_of_image[VARIANT]), 5.0, 1.0)
    weighted = replace(record, bank=replace(record.bank, weights=weights))
    taught = teach(weighted, [lesson(weighted, NORMAL, VARIANT)])
    queries = make_features(9)[VARIANT].flatten(0, 1)
    banks = (weighted.bank, taught.bank)
    before, after = (score_patches_by_banks(NearestNeighborSearch(bank), queries) for bank in banks)
    assert after[0].max() < 0.7 * before.max()


def test_lessons_do_not_count_at_ignored_positions(record):
    ignored = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    ignored[2, 1:3] = True
    new = lesson(record, NORMAL, features=make_features(9)[VARIANT], name="new")
    defective = lesson(record, DEFECT, DEFECTIVE)
    taught = teach(record, [new, defective], ignored)
    assert not len(taught.defects)
    assert not set(map(tuple, make_features(9)[VARIANT, 2, 1:3].tolist())) & set(
        map(tuple, taught.bank.features.tolist())
    )


def test_ignored_positions_have_no_rows(record):
    ignored = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    ignored[:, :2] = True
    taught = teach(record, [], ignored)
    kept = record.places % WIDTH >= 2
    assert torch.equal(taught.bank.features, record.bank.features[kept])


def test_scores_again_are_those_of_a_new_search(record):
    """For the patches that are kept."""
    taught = teach(record, [lesson(record, NORMAL, VARIANT), lesson(record, SET_ASIDE, 11)])
    again = score_again(record.maps, taught)
    features = make_features()
    for number, group in enumerate(record.maps.groups.tolist()):
        image = record.group_of_image.tolist().index(group)
        places = record.maps.places[number]
        expected = brute_force(taught.bank, features[image].flatten(0, 1)[places], taught.groups == group)
        np.testing.assert_allclose(again[number, 0].flatten()[places], expected, rtol=1e-4, atol=1e-4)


def test_two_banks_keep_their_rows(record):
    """New rows are in both banks, even if the banks share no row."""
    count = len(record.bank.features)
    for ranges in (((0, count - 20), (30, count)), ((0, 50), (50, count))):
        two = replace(record, bank=replace(record.bank, bank_ranges=ranges))
        two = replace(two, maps=replace(two.maps, scores=two.maps.scores[:, :1].expand(-1, 2, -1, -1)))
        new_image = lesson(two, NORMAL, features=make_features(9)[VARIANT], name="new")
        taught = teach(two, [new_image, lesson(two, SET_ASIDE, 11)])
        new = len(taught.bank.features) - int((record.groups != int(record.group_of_image[11])).sum())
        assert new > 0
        for (start, stop), (old_start, old_stop) in zip(taught.bank.bank_ranges, ranges, strict=True):
            expected = record.bank.features[old_start:old_stop][
                record.groups[old_start:old_stop] != int(record.group_of_image[11])
            ]
            rows = {tuple(row) for row in taught.bank.features[start:stop].tolist()}
            assert stop - start == len(expected) + new
            assert {tuple(row) for row in expected.tolist()} < rows


def test_nothing_left_is_refused(record):
    with pytest.raises(ValueError, match="Nothing is left of the memory bank"):
        teach(record, [lesson(record, SET_ASIDE, image) for image in range(IMAGES)])


def test_a_region_without_patches_is_refused(record):
    with pytest.raises(ValueError, match="no patch of the model"):
        lesson(record, DEFECT, DEFECTIVE, region=torch.zeros(HEIGHT, WIDTH, dtype=torch.bool))


def test_plain_data_and_back(record, tmp_path):
    """With a file that loads without unpickling code."""
    lessons = [lesson(record, NORMAL, VARIANT), lesson(record, DEFECT, DEFECTIVE)]
    torch.save(to_plain(record, lessons), tmp_path / "record.pt")
    again, lessons_again = from_plain(torch.load(tmp_path / "record.pt", weights_only=True))
    first, second = teach(record, lessons), teach(again, lessons_again)
    assert torch.equal(first.bank.features, second.bank.features)
    assert torch.equal(first.bank.radii, second.bank.radii)
    assert torch.equal(first.defects, second.defects)
    assert again.keys == record.keys


def farthest_first(distances, rows, count):
    """The definition, in float64: again and again the row that is farthest from the bank and all chosen ones."""
    rows, chosen = rows.double().numpy(), []
    for _ in range(count):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
    return chosen


def test_many_normal_images_add_no_more_rows_than_the_bank_has(record):
    """Plus a training image's share for each: the rows that are farthest from the bank and from each other."""
    generator = torch.Generator().manual_seed(4)
    strange = 2 * torch.randn(40, HEIGHT, WIDTH, CHANNELS, generator=generator)
    lessons = [lesson(record, NORMAL, features=each, name=f"new {number:02}") for number, each in enumerate(strange)]
    all_rows = torch.cat([each.rows for each in lessons])
    most = len(record.bank.features) + 40 * -(-len(record.bank.features) // IMAGES)
    assert len(all_rows) > most
    taught = teach(record, lessons)
    new = taught.groups > int(record.group_of_image.max())
    assert int(new.sum()) == most
    expected = sorted(farthest_first(brute_force(record.bank, all_rows), all_rows, most))
    assert torch.equal(taught.bank.features[new], all_rows[expected])
    for order in (lessons[::-1], lessons[7:] + lessons[:7]):
        assert torch.equal(teach(record, order).bank.features, taught.bank.features)
    fewer = teach(record, lessons[:3])
    assert torch.equal(
        fewer.bank.features[fewer.groups > int(record.group_of_image.max())],
        torch.cat([each.rows for each in lessons[:3]]),
    )


def test_rows_called_normal_stay_even_if_a_defect_resembles_them(record):
    """Only rows that nobody has decided about leave the bank if they resemble a defect."""
    if record.support is None:
        pytest.skip("without radii no row leaves the bank because it resembles a defect")
    everywhere = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    like_it = lesson(record, DEFECT, features=make_features()[VARIANT], name="like the variant", region=everywhere)
    rows = record.groups == record.group_of_image[VARIANT]
    assert rows.sum() > 5
    for lessons, stay in (([like_it], False), ([like_it, lesson(record, NORMAL, VARIANT)], True)):
        kept = {tuple(row) for row in teach(record, lessons).bank.features.tolist()}
        assert {tuple(row) in kept for row in record.bank.features[rows].tolist()} == {stay}


def test_a_taught_defect_raises_the_score_of_its_image(model):
    """To the score of its patch, which makes the image anomalous."""
    features = make_features(9)[:2]
    before = model.score(features, (64, 64)).pred_score
    bank, threshold = model.defect_bank, 2 * float(before.max())
    try:
        model.defect_bank = defect_bank(features[1, 2, 2][None], threshold)
        after = model.score(features, (64, 64))
    finally:
        model.defect_bank = bank
    normal = score_patches_by_banks(NearestNeighborSearch(model.record.bank), features.flatten(0, 2))[-1].view(2, -1)
    raised = defect_bank(features[1, 2, 2][None], threshold).score(normal, features.flatten(0, 2))
    assert after.pred_score[0] == before[0]
    assert after.pred_score[1] == raised[1].max() > threshold


@pytest.mark.parametrize("num_neighbors", [1, 3])
def test_out_of_bag_scores_are_those_of_a_bank_without_the_image(num_neighbors):
    model = Fitted(num_neighbors=num_neighbors, min_images="auto", thresholds=(0.0,))
    features = make_features()
    model.feature_store.append(features, [f"{number:03}" for number in range(IMAGES)])
    model.fit(None)
    record, bank, found = model.record, model.record.bank, model.out_of_bag.image_scores
    expected = []
    for image in range(IMAGES):
        others = record.groups != record.group_of_image[image]
        rest = MemoryBank(bank.features[others], bank.weights[others], bank.radii[others], ((0, int(others.sum())),))
        model.set_memory_bank(rest)
        expected.append(float(model.score(features[image][None], (64, 64)).pred_score))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
