# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Options of a model on the command line, from the checkpoint given with it; end to end in test_predict.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.cli import AnomalibCLI
from jsonargparse import Namespace

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.anomalib_command.checkpoint_options import take_options
from anomalib_softpatch.models.checkpoint import current_options

OPTIONS = {"backbone": "test_resnet", "layers": ["layer1", "layer3"], "pre_trained": True, "score_smoothing": 0.5}
DEFAULTS = {
    "backbone": "wide_resnet50_2", "layers": ["layer2", "layer3"], "pre_trained": True, "score_smoothing": 0.0,
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    content = {"hyper_parameters": OPTIONS, "anomalib_softpatch": {"format": 1, "model": "SoftPatch"}}
    torch.save(content, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def config(checkpoint: object, class_path: str = "anomalib_softpatch.models.SoftPatch", **options: Any) -> Namespace:
    init_args = Namespace(**(DEFAULTS | options))
    return Namespace(ckpt_path=checkpoint, model=Namespace(class_path=class_path, init_args=init_args))


def test_options_that_are_not_given_come_from_the_checkpoint(checkpoint: Path) -> None:
    """But no weights are downloaded: they are in the file."""
    found = config(checkpoint)
    take_options(found)
    assert vars(found.model.init_args) == OPTIONS | {"pre_trained": False}


def test_given_options_stay(checkpoint: Path) -> None:
    found = config(str(checkpoint), layers=["layer4"], score_smoothing=2.0)
    take_options(found)
    given = {"layers": ["layer4"], "score_smoothing": 2.0}
    assert vars(found.model.init_args) == OPTIONS | {"pre_trained": False} | given


@pytest.mark.parametrize(
    "found",
    [
        config(None),
        config("best"),
        config(__file__, "anomalib.models.Patchcore"),
        config(__file__, "somebody.SoftPatch"),
    ],
)
def test_others_are_left_alone(found: Namespace) -> None:
    take_options(found)
    assert vars(found.model.init_args) == DEFAULTS


def test_another_model(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.ckpt was written by SoftPatch, but .*: use --model SoftPatch\."):
        take_options(config(checkpoint, "anomalib_softpatch.models.SoftPatchPlus"))


def test_no_checkpoint() -> None:
    with pytest.raises(ValueError, match="is not a checkpoint, or is incomplete"):
        take_options(config(__file__))


@pytest.mark.parametrize("model", [SoftPatch, SoftPatchPlus])
def test_command_line_makes_the_model_of_the_checkpoint(model: type, tmp_path: Path) -> None:
    """Stands for `anomalib export`: up to the point where the model is made."""
    content = {
        "hyper_parameters": {"backbone": "test_resnet", "layers": ["layer1"], "pre_trained": True, "lof_k": 4},
        "anomalib_softpatch": {"format": 1, "model": model.__name__},
    }
    torch.save(content, tmp_path / "model.ckpt")
    arguments = ["--model", model.__name__, "--export_type", "onnx", "--ckpt_path", str(tmp_path / "model.ckpt")]
    found = AnomalibCLI(["export", *arguments], run=False).model
    assert type(found) is model
    assert found.model.feature_extractor.layers == ["layer1"]
    assert found.model.memory_bank_builder.lof_k == 4


def test_options_of_version_0_2(tmp_path: Path) -> None:
    """Removed options are left out. Defaults that have changed since then are set to their old values."""
    options = {
        "backbone": "test_resnet", "layers": ["layer1"], "pre_trained": False, "discriminators": ("simplified_lof",),
        "classification_threshold": "auto", "segmentation_threshold": 0.3, "prototypes": True, "score_smoothing": 1.0,
    }  # fmt: skip
    content = {"hyper_parameters": options, "anomalib_softpatch": {"format": 1, "model": "SoftPatchPlus"}}
    torch.save(content, tmp_path / "model.ckpt")
    arguments = ["--model", "SoftPatchPlus", "--export_type", "onnx", "--ckpt_path", str(tmp_path / "model.ckpt")]
    found = AnomalibCLI(["export", *arguments], run=False).model
    builder = found.model.memory_bank_builder
    assert builder.discriminators == ("knn",)
    assert builder.thresholds == (0.0, 0.3)
    assert (builder.min_images, builder.neighborhood) == (1, 0)
    assert found.model.feature_extractor.layers == ["layer1"]
    assert "prototypes" not in found.hparams


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"discriminator": "ensemble"}, {"discriminator": "knn"}),
        ({"discriminator": "lof", "threshold": 0.15}, {"discriminator": "lof", "threshold": 0.15}),
        ({"discriminator": "lof", "threshold": "auto"}, {"discriminator": "lof", "threshold": 0.0}),
        ({"discriminators": ["ensemble", "lof", "gaussian"]}, {"discriminators": ["lof", "gaussian"]}),
        ({"discriminators": ["ensemble", "simplified_lof"]}, {"discriminators": ["knn"]}),
        (
            {"classification_threshold": 0.15, "neighborhood": "image", "prototypes": False},
            {"classification_threshold": 0.15, "neighborhood": "image", "min_images": 1},
        ),
        (
            {"classification_threshold": 0.0, "min_images": "auto", "discriminators": ["knn"]},
            {"classification_threshold": 0.0, "min_images": "auto", "discriminators": ["knn"]},
        ),
        ({}, {}),
    ],
)
def test_current_options(before: dict[str, Any], after: dict[str, Any]) -> None:
    given = dict(before)
    assert current_options(given) == after
    assert given == before
