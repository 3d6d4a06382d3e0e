# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The model that clean-train makes from its options."""

from pathlib import Path
from typing import Any

import pytest

from anomalib_softpatch.cleaning import stages
from anomalib_softpatch.extraction import Extraction


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [("SoftPatch", None, 0), ("SoftPatchPlus", None, 1), ("SoftPatch", 2, 2), ("SoftPatchPlus", "image", "image")],
)
def test_the_neighborhood_is_the_models_own_unless_one_is_given(
    model: str, given: Any, expected: Any, tmp_path: Path
) -> None:
    """SoftPatch compares patches at the same position by default, as the papers do."""
    extraction = Extraction("test_resnet", ["layer2"], (64, 64), feature_cache=tmp_path)
    options = stages.Options(model, extraction, given, model_options={})
    made = stages._make_model(options, pre_trained=False)
    assert made.model.memory_bank_builder.neighborhood == expected


def test_a_dot_names_a_part_of_an_option(tmp_path: Path) -> None:
    """The notation is that of anomalib train's command line."""
    extraction = Extraction("test_resnet", ["layer2"], (64, 64), feature_cache=tmp_path)
    given = {"discriminator_options.lof_k": 3, "coreset_sampling_ratio": 0.5}
    builder = stages._make_model(
        stages.Options("SoftPatch", extraction, None, model_options=given), pre_trained=False
    ).model.memory_bank_builder
    assert builder.discriminator_options == {"lof_k": 3}
    assert builder.coreset_sampling_ratio == 0.5
