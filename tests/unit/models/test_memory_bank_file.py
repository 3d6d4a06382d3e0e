# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Memory banks as safetensors files."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anomalib_softpatch import SoftPatch, SoftPatchPlus, __version__, load_memory_bank, save_memory_bank
from anomalib_softpatch.components import MemoryBank

SMALL = {
    "backbone": "test_resnet",
    "layers": ["layer1", "layer2"],
    "pre_trained": False,
    "coreset_sampling_ratio": 0.02,
}


def new_model(model_class: type = SoftPatch, seed: int = 0, size: int = 64, **options: object) -> SoftPatch:
    pre_processor = model_class.configure_pre_processor((size, size))
    return model_class(**(SMALL | options), seed=seed, pre_processor=pre_processor).eval()  # an untrained backbone's


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def train(model: SoftPatch, images: torch.Tensor) -> SoftPatch:
    model.model.memory_bank_builder.progress = False
    model.model.train()(images)
    model.model.fit()
    for value in model.post_processor.state_dict().values():  # as a validation with masks sets them
        value.fill_(7.0)
    return model.eval()


@pytest.fixture(scope="module")
def trained(images: torch.Tensor) -> SoftPatch:
    return train(new_model(), images)


@pytest.fixture
def file(trained: SoftPatch, tmp_path: Path) -> Path:
    return save_memory_bank(trained, tmp_path / "bank.safetensors")


@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
def test_loaded_model_scores_as_the_trained_one(model_class: type, images: torch.Tensor, tmp_path: Path) -> None:
    original = train(new_model(model_class), images)
    path = save_memory_bank(original, tmp_path / "new folder" / "bank.safetensors")
    assert [each.name for each in path.parent.iterdir()] == ["bank.safetensors"]
    model = new_model(model_class)
    load_memory_bank(model, path)
    assert model.model.bank_ranges == original.model.bank_ranges
    assert torch.equal(model.model.radii, original.model.radii)
    assert (model.model.radii > 0).all() == (model_class is SoftPatchPlus)
    assert model._is_fitted.all()
    unseen = torch.randn(3, 3, 64, 64)
    expected, actual = original.model(unseen), model.model(unseen)
    assert torch.equal(actual.pred_score, expected.pred_score)
    assert torch.equal(actual.anomaly_map, expected.anomaly_map)
    assert model.post_processor.image_max == 7


def test_other_software_can_read_it(trained: SoftPatch, file: Path) -> None:
    """With nothing but the safetensors library."""
    tensors = load_file(file)
    assert torch.equal(tensors["memory_bank"], trained.model.memory_bank)
    assert torch.equal(tensors["weights"], trained.model.weights)
    assert torch.equal(tensors["radii"], trained.model.radii)
    assert tensors["banks"].tolist() == [list(bank) for bank in trained.model.bank_ranges]
    with safe_open(file, "pt") as opened:
        metadata = {name: json.loads(text) for name, text in opened.metadata().items()}
    assert metadata.pop("backbone_sha256").isalnum()
    assert metadata == {
        "format": 2,
        "version": __version__,
        "model": "SoftPatch",
        "backbone": "test_resnet",
        "layers": ["layer1", "layer2"],
        "patch_embedding": "average",
        "precision": "float32",
        "score_smoothing": 0.0,
        "input_size": [64, 64],
        "largest_value": 255,
        "tiles": None,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["layer2"]}, r"layers=\['layer1', 'layer2'\], but the model has layers=\['layer2'\]"),
        ({"patch_embedding": "unfold"}, "patch_embedding=average, but the model has patch_embedding=unfold"),
        ({"precision": "bfloat16"}, "precision=float32, but the model has precision=bfloat16"),
        ({"backbone": "resnet34"}, r"another backbone \(test_resnet\) than the model's \(resnet34\)"),
        ({"seed": 1}, r"than the model's \(test_resnet\), or with other weights: give the model the same"),
        ({"model_class": SoftPatchPlus}, "was written by SoftPatch, but the model is SoftPatchPlus: use SoftPatch"),
    ],
)
def test_models_that_do_not_fit(file: Path, options: dict, message: str) -> None:
    model = new_model(**options)
    with pytest.raises(ValueError, match=message):
        load_memory_bank(model, file)
    assert not model.model.bank_ranges


def test_other_image_size_is_mentioned(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = new_model(size=96)
    load_memory_bank(model, file)
    assert r"images of [64, 64] pixels, but the model gets [96, 96]" in caplog.text
    assert model.model.bank_ranges


def rewrite(file: Path, tensors: dict | None = None, **metadata: object) -> None:
    """Replace tensors and entries of the metadata; those that are None are left out."""
    with safe_open(file, "pt") as opened:
        texts = opened.metadata() | {name: json.dumps(value) for name, value in metadata.items()}
    tensors = load_file(file) | (tensors or {})
    texts = {name: text for name, text in texts.items() if text != "null"}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, texts)


NO_THRESHOLDS = {f"post_processor._{name}_threshold": torch.tensor(torch.nan) for name in ("image", "pixel")}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"weights": None}, {}, "is not a memory bank of SoftPatch or SoftPatchPlus: it lacks weights"),
        ({}, {"layers": None}, "lacks layers"),
        ({}, {"format": "first"}, "lacks format"),
        (
            {},
            {"format": 3, "version": "9.8.7"},
            r"written by anomalib-softpatch 9\.8\.7 in format 3.*install the newer",
        ),
        (
            {"weights": torch.ones(3)},
            {},
            r"is damaged: its features \(float32 \[40, 80\]\), weights \(float32 \[3\]\)",
        ),
        ({"weights": torch.full((40,), torch.nan)}, {}, "is damaged"),
        ({"weights": torch.full((40,), -1.0)}, {}, "is damaged"),
        ({"radii": torch.zeros(39)}, {}, r"is damaged: .* radii \(float32 \[39\]\)"),
        ({"radii": torch.full((40,), torch.nan)}, {}, "is damaged"),
        ({"radii": torch.full((40,), torch.inf)}, {}, "is damaged"),
        ({"radii": torch.full((40,), -1.0)}, {}, "is damaged"),
        ({"radii": torch.zeros(40, dtype=torch.float64)}, {}, r"is damaged: .* radii \(float64 \[40\]\)"),
        ({"memory_bank": torch.zeros(40, 80, dtype=torch.float16)}, {}, r"is damaged: its features \(float16"),
        ({"memory_bank": torch.zeros(40, 100)}, {}, "has features of 100 channels, but the model's have 80"),
        ({"memory_bank": torch.zeros(())}, {}, "is damaged"),
        ({"banks": torch.tensor([[0, 41]])}, {}, "is damaged"),
        ({"banks": torch.tensor([[-1, 40]])}, {}, "is damaged"),
        ({"banks": torch.tensor([[0, 10], [20, 40]])}, {}, "is damaged"),
        ({"banks": torch.zeros(0, 2, dtype=torch.long)}, {}, "is damaged"),
        (
            {"memory_bank": torch.zeros(40, 80), "banks": torch.tensor([[0, 40], [0, 40]])},
            {},
            "was made with memory_banks=2, but the model has memory_banks=1",
        ),
        ({"post_processor.image_max": torch.zeros(2)}, {}, r"value 'image_max' has another shape \(float32 \[2\]\)"),
        ({"post_processor._image_threshold": None}, {}, "value '_image_threshold' is missing"),
        (NO_THRESHOLDS, {}, "no decision threshold: _image_threshold, _pixel_threshold of"),
        (NO_THRESHOLDS | {"post_processor._pixel_threshold": torch.tensor(torch.inf)}, {}, "decision threshold: _im"),
    ],
)
def test_damaged_files(trained: SoftPatch, file: Path, tensors: dict, metadata: dict, message: str) -> None:
    """The model does not change, whatever is wrong."""
    rewrite(file, tensors, **metadata)
    model = copy.deepcopy(trained)
    with pytest.raises(ValueError, match=message):
        load_memory_bank(model, file)
    assert torch.equal(model.model.memory_bank, trained.model.memory_bank)
    assert torch.equal(model.model.weights, trained.model.weights)
    assert torch.equal(model.model.radii, trained.model.radii)
    assert model.model.bank_ranges == trained.model.bank_ranges


def test_files_from_before_version_0_3_have_no_radii(images: torch.Tensor, tmp_path: Path) -> None:
    """The model that reads one loses its own radii."""
    original, model = (train(new_model(SoftPatchPlus), images) for _ in range(2))
    file = save_memory_bank(original, tmp_path / "bank.safetensors")
    rewrite(file, {"radii": None}, format=1, version="0.2.0")
    load_memory_bank(model, file)
    assert torch.equal(model.model.memory_bank, original.model.memory_bank)
    assert model.model.radii.tolist() == [0.0] * len(original.model.weights)
    inner = original.model
    inner.set_memory_bank(MemoryBank(inner.memory_bank, inner.weights, None, inner.bank_ranges))
    assert torch.equal(model.model(images).pred_score, original.model(images).pred_score)


def test_files_of_other_kinds(trained: SoftPatch, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no memory bank at all"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"bank\.safetensors is not a memory bank, or is incomplete"):
            load_memory_bank(trained, file)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors is not a file"):
        load_memory_bank(trained, tmp_path / "nothing.safetensors")


def test_untrained_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The memory bank is empty: train the model"):
        save_memory_bank(new_model(), tmp_path / "bank.safetensors")
    assert not list(tmp_path.iterdir())


def test_model_without_a_threshold_is_not_saved(images: torch.Tensor, tmp_path: Path) -> None:
    """Nobody could load it."""
    model = train(new_model(), images)
    model.post_processor._image_threshold.fill_(torch.nan)
    model.post_processor._pixel_threshold.fill_(torch.nan)
    message = r"no decision threshold: _image_threshold, _pixel_threshold of its post-processor.*Validate it"
    with pytest.raises(ValueError, match=message):
        save_memory_bank(model, tmp_path / "bank.safetensors")
    assert not list(tmp_path.iterdir())


def test_images_without_masks_have_no_pixel_threshold(images: torch.Tensor, tmp_path: Path) -> None:
    original = train(new_model(), images)
    for name, value in original.post_processor.state_dict().items():
        if "pixel" in name:
            value.fill_(torch.nan)
    model = new_model()
    load_memory_bank(model, save_memory_bank(original, tmp_path / "bank.safetensors"))
    assert model.post_processor.image_max == 7
    assert model.post_processor.pixel_max.isnan()


def test_scores_without_a_post_processor_need_no_threshold(file: Path, images: torch.Tensor, tmp_path: Path) -> None:
    raw = new_model(post_processor=False)
    load_memory_bank(raw, file)
    without = save_memory_bank(raw, tmp_path / "raw.safetensors")
    load_memory_bank(new_model(post_processor=False), without)
    with pytest.raises(ValueError, match="is missing"):
        load_memory_bank(new_model(), without)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_follows_the_umask(trained: SoftPatch, tmp_path: Path, umask: int) -> None:
    """The mode is that of any new file, so that colleagues can read it if the user's umask lets them."""
    before = os.umask(umask)
    try:
        path = save_memory_bank(trained, tmp_path / "bank.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
