# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds of a model that was taught."""

from argparse import Namespace
from itertools import permutations

import pytest
import torch

from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.components.search import NearestNeighborSearch
from anomalib_softpatch.components.teaching import Lesson, gone_groups, make_lesson, score_again, teach
from anomalib_softpatch.images.decisions import DEFECT, NORMAL
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel
from anomalib_softpatch.models.teaching import teach_model

IMAGES, DEFECTIVE, SHARE = 30, 4, 0.1


def make_features(seed: int = 0) -> torch.Tensor:
    """Images that differ only by noise, which is stronger in some than in others; one has a defect."""
    generator = torch.Generator().manual_seed(seed)
    pattern = 3 * torch.randn(5, 5, 12, generator=torch.Generator().manual_seed(100))
    noise = torch.linspace(0.2, 0.5, IMAGES)[torch.randperm(IMAGES, generator=generator)]
    features = pattern + noise[:, None, None, None] * torch.randn(IMAGES, 5, 5, 12, generator=generator)
    features[DEFECTIVE, 2, 2] += 3
    return features


@pytest.fixture
def module() -> Namespace:
    """The parts of a Lightning module that teaching uses."""
    builder = DenoisingMemoryBank(
        discriminators=("knn",), thresholds=(0.0, 0.0), coreset_sampling_ratio=0.3, soft_weight=False, neighborhood=1
    )
    model = SoftPatchModel(layers=["layer1"], backbone="test_resnet", pre_trained=False, memory_bank_builder=builder)
    model.feature_store.append(make_features(), [f"{number:03}.png" for number in range(IMAGES)])
    model.fit((32, 32))
    processor = LabelFreePostProcessor(false_alarms=SHARE)
    processor.decide_without_labels(model.out_of_bag)
    return Namespace(model=model, post_processor=processor, input_size=(32, 32))


def lesson(module: Namespace, image: int, verdict: str = NORMAL) -> Lesson:
    record = module.model.record
    features, group = make_features()[image], int(record.group_of_image[image])
    return make_lesson(record, NearestNeighborSearch(record.bank), verdict, f"{image:03}", "path", features, group)


def scores_as_new(module: Namespace, lessons: list[Lesson]) -> dict[int, float]:
    """Image scores of training images that are not known to be defects, by their numbers."""
    record, gone = module.model.record, gone_groups(lessons)
    scores = module.model.score_maps(score_again(record.maps, teach(record, lessons)), None).image_scores
    images = [record.group_of_image.tolist().index(group) for group in record.maps.groups.tolist()]
    return {
        image: float(score)
        for image, score in zip(images, scores, strict=True)
        if int(record.group_of_image[image]) not in gone
    }


def decide_from_the_top(module: Namespace) -> list[Lesson]:
    """Decide about the images with the highest scores until the threshold follows from decisions."""
    decided: dict[int, Lesson] = {}
    while True:
        change = teach_model(module, list(decided.values()))
        if "follows from decisions" in change.rule:
            return list(decided.values())
        scores = scores_as_new(module, list(decided.values()))
        image = max((image for image in scores if image not in decided), key=scores.__getitem__)
        assert f"{image:03}.png" in change.rule or not decided
        decided[image] = lesson(module, image, DEFECT if image == DEFECTIVE else NORMAL)


def test_decisions_about_the_highest_scores_set_the_threshold(module: Namespace) -> None:
    lessons = decide_from_the_top(module)
    assert {each.verdict for each in lessons} == {NORMAL, DEFECT}
    assert len(lessons) <= 6
    scores = sorted(scores_as_new(module, lessons).values(), reverse=True)
    third = scores[2]  # a tenth of 29 images and a new one
    assert float(module.post_processor.image_threshold) == pytest.approx(third, rel=1e-6)


def test_any_order_gives_the_same_thresholds_and_none_the_first_ones(module: Namespace) -> None:
    processor = module.post_processor
    first = processor.image_threshold.clone(), processor.pixel_threshold.clone()
    lessons = decide_from_the_top(module)
    taught = processor.image_threshold.clone(), processor.pixel_threshold.clone()
    assert not torch.equal(first[0], taught[0])
    for order in list(permutations(lessons))[::7]:
        teach_model(module, order)
        assert torch.equal(processor.image_threshold, taught[0])
        assert torch.equal(processor.pixel_threshold, taught[1])
    teach_model(module, [])
    assert torch.equal(processor.image_threshold, first[0])
    assert torch.equal(processor.pixel_threshold, first[1])


def test_a_decision_about_a_part_decides_nothing_about_the_image(module: Namespace) -> None:
    lessons = decide_from_the_top(module)
    scores = scores_as_new(module, lessons)
    highest = max(lessons, key=lambda each: scores.get(int(each.name), 0.0))
    part = Lesson(**(vars(highest) | {"region": torch.ones(5, 5, dtype=torch.bool)}))
    change = teach_model(module, [*(each for each in lessons if each is not highest), part])
    assert "median and spread" in change.rule


@pytest.mark.parametrize("of_folder", [True, False])
def test_single_new_images_set_no_threshold_but_folders_do(module: Namespace, of_folder: bool) -> None:
    """People decide about suspicious single images, whose scores are not representative."""
    record, lessons = module.model.record, decide_from_the_top(module)
    before = float(module.post_processor.image_threshold)
    # Each far from all others, so that they change no other score
    far = make_features(3) + 3 * torch.randn(IMAGES, 1, 1, 12, generator=torch.Generator().manual_seed(9))
    search = NearestNeighborSearch(record.bank)
    new = [
        Lesson(**(vars(make_lesson(record, search, NORMAL, f"new {n}", "path", far[n])) | {"of_folder": of_folder}))
        for n in range(10)
        if n != DEFECTIVE
    ]
    change = teach_model(module, [*lessons, *new])
    assert f"of {38 if of_folder else 29} images" in change.rule
    assert (float(module.post_processor.image_threshold) > 1.02 * before) == of_folder


def test_decisions_do_not_replace_a_known_share_of_defects(module: Namespace) -> None:
    """A user who knows the share of defects does not choose a share of false alarms."""
    lessons = decide_from_the_top(module)
    module.post_processor.expected_defects = 0.1
    teach_model(module, [])
    module.post_processor.decide_without_labels(module.model.score_maps(module.model.record.maps.scores, (32, 32)))
    assert "decisions" not in teach_model(module, lessons).rule
