# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Allowed values of options, and defaults that are the same in all places."""

import inspect

import pytest

from anomalib_softpatch import SoftPatch, SoftPatchPlus, options, rank_images
from anomalib_softpatch.cleaning.command import clean_train
from anomalib_softpatch.components import DenoisingMemoryBank, References, score_patches
from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel
from anomalib_softpatch.report.command import report
from anomalib_softpatch.scoring.command import predict


@pytest.mark.parametrize(
    ("constraint", "allowed", "refused"),
    [
        (options.at_least(1), [1, 2.5, 10**9], [0, 0.99, -1, True, "1", None, float("nan")]),
        (options.whole_number(1), [1, 10**9], [0, -1, 2.5, 2.0, True, "1", None, float("nan")]),
        (options.optional(options.at_least(1)), [1, None], [0, True, "1", float("nan")]),
        (options.SHARE, [0.05, 0.999], [0, 1, -0.1, True, False, "0.1", None, float("nan")]),
        (options.SHARE_TO_REMOVE, [0, 0.0, 0.15, 0.999], [1, 1.0, -0.1, True, False, "0.1", None, float("nan")]),
        (
            options.MIN_IMAGES,
            ["auto", 1, 2, 3.0, 0.1, 10**6],
            [0, 0.0, -1, -0.1, 1.5, "many", "", True, False, None, float("nan"), float("inf")],
        ),
        (options.SHARE_TO_KEEP, [1, 1.0, 1e-9], [0, 0.0, 1.01, -1, True, "1", None, float("nan")]),
        (options.NEIGHBORHOOD, [0, 1, 99, "image"], [-1, 0.5, True, "window", None]),
        (options.NOISE_RATIO, [0, 0.1, 3], [-0.1, True, "0.1", None, float("nan"), float("inf")]),
    ],
)
def test_constraints(constraint, allowed, refused):
    for value in allowed:
        options.check_value("option", value, constraint)
    for value in refused:
        with pytest.raises(ValueError, match=r"option=.* must be ") as caught:
            options.check_value("option", value, constraint)
        assert str(caught.value) == f"option={value!r} must be {constraint.text}."


def test_one_constraint_for_several_values():
    options.check(thresholds=(0.1, 0.2), seed=0)
    with pytest.raises(ValueError, match=r"thresholds=2 must be "):
        options.check(seed=0, thresholds=(0.1, 2))


def test_the_unit_is_named():
    with pytest.raises(ValueError, match=r"memory_budget=-1 must be at least 0 GiB\."):
        options.check(memory_budget=-1)


def test_choices():
    options.check_choice("task", "both", {"both": 1})
    with pytest.raises(ValueError, match=r"Unknown task 'map': choose from both, image\."):
        options.check_choice("task", "map", ("both", "image"))


@pytest.mark.parametrize(
    "places",
    [
        (SoftPatch, DenoisingMemoryBank),
        (SoftPatch, SoftPatchModel),
        (SoftPatch, References),
        (SoftPatch, score_patches),
        (SoftPatch, rank_images, {"neighborhood", "min_images"}),
        (
            SoftPatchPlus,
            SoftPatch,
            {"soft_weight", "min_images", "neighborhood", "score_smoothing"},
        ),
        (SoftPatchPlus, rank_images),
        (rank_images, Extraction, {"backbone", "layers"}),  # which the commands choose by what is available
        (rank_images, report),
        (report, clean_train, {"neighborhood", "export", "output"}),
        (clean_train, LabelFreePostProcessor),
        (predict, LabelFreePostProcessor),
    ],
    ids=lambda places: " and ".join(place.__name__ for place in places[:2]),
)
def test_defaults_are_the_same_in_all_places(places):
    one, other, *differs = places
    first, second = (defaults(place) for place in (one, other))
    shared = (first.keys() & second.keys()) - (differs[0] if differs else set())
    assert shared
    for name in shared:
        assert first[name] == second[name], name
    for name in differs[0] if differs else ():
        assert first[name] != second[name], name


def defaults(place):
    found = {name: each.default for name, each in inspect.signature(place).parameters.items()}
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    return {name: value for name, value in found.items() if value is not inspect.Parameter.empty}
