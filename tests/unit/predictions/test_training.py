# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Facts about the training images, and remarks about folders that differ from them."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from anomalib_softpatch.images.appearance import FEWEST, Appearance, UsualAppearance
from anomalib_softpatch.predictions.training import TrainingFacts

FACTS = TrainingFacts(scores=(0.3, 0.4, 0.5))


def test_a_folder_like_the_training_images_gets_no_remark():
    assert FACTS.remark(list(np.random.default_rng(0).normal(0.42, 0.05, 50))) == ""


@pytest.mark.parametrize("typical", [0.2, 0.6])
def test_a_remark_has_the_scores_of_both(typical):
    remark = FACTS.remark([typical] * FEWEST + [0.4])
    assert f"median score is {typical:.3f}" in remark
    assert "new, have 0.400 (5 to 95 %: 0.300 to 0.500)" in remark


def test_a_quarter_of_defects_is_not_a_drift():
    assert FACTS.remark([0.4] * 30 + [0.9] * 10) == ""


def test_few_images_and_old_models_get_no_remark():
    assert FACTS.remark([0.9] * (FEWEST - 1)) == ""
    assert TrainingFacts().remark([0.9] * 50) == ""


def test_facts_can_be_stored_as_json():
    """Models may know how their training images look, or only their names and scores, or nothing."""
    looks = UsualAppearance((9.0, 9.0, 9.0), (8.0, 8.0, 8.0), (1.0, 2.0, 3.0), {"gray, 8 bits": 1.0})
    for facts in (TrainingFacts(("a",), (0.3, 0.4, 0.5), looks), TrainingFacts(("a",)), TrainingFacts()):
        assert TrainingFacts.from_plain(json.loads(json.dumps(asdict(facts)))) == facts
    assert TrainingFacts.from_plain({}) == TrainingFacts()


def test_old_models_do_not_remark_on_how_images_look():
    images = [Appearance(9, 9, "gray, 8 bits", 90.0)] * FEWEST
    assert FACTS.remarks([0.9] * FEWEST, images).keys() == {"score"}
    assert TrainingFacts().remarks([0.9] * FEWEST, images) == {}
