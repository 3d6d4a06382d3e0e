# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Models from checkpoints alone: the file determines model, backbone and layers."""

import pickle
import shutil
from pathlib import Path

import pytest
import timm
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from timm.models import save_for_hf
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, Grayscale, Pad, Resize, Transform

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.backbones import portable_name
from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.models import load_model

SMALL = {"backbone": "test_resnet", "layers": ["layer2"], "pre_trained": False, "coreset_sampling_ratio": 0.02}


def fitted(model_class: type, mvtec_root: Path, folder: Path, **options: object) -> tuple[nn.Module, Path]:
    options = SMALL | {"visualizer": False, "pre_processor": model_class.configure_pre_processor((64, 64))} | options
    model = model_class(**options)
    runner = Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)
    runner.fit(model, datamodule=MVTecAD(root=mvtec_root, category="bottle", num_workers=0))
    return model.eval(), Path(runner.trainer.checkpoint_callback.best_model_path)


@pytest.fixture(scope="module")
def checkpoint(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(SoftPatch, mvtec_root, tmp_path_factory.mktemp("soft_patch"), noise_report=False)[1]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
def test_model(model_class: type, mvtec_root: Path, images: torch.Tensor, tmp_path: Path) -> None:
    """The loaded model has the class, options, threshold and scores of the trained one."""
    trained, path = fitted(model_class, mvtec_root, tmp_path, noise_report=False, lof_k=3)
    loaded = load_model(str(path)).eval()
    assert type(loaded) is model_class
    assert loaded.model.memory_bank_builder.lof_k == 3
    assert torch.equal(loaded.model.radii, trained.model.radii)
    assert (loaded.model.radii > 0).all() == (model_class is SoftPatchPlus)
    assert torch.equal(loaded(images).pred_score, trained(images).pred_score)
    assert torch.equal(loaded.post_processor.image_threshold, trained.post_processor.image_threshold)
    assert loaded.device.type == "cpu"


def test_weights_come_with_the_checkpoint(checkpoint: Path, images: torch.Tensor, tmp_path: Path) -> None:
    """They are not loaded from elsewhere, even if the backbone was pre-trained."""
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["pre_trained"] = True
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("weights were looked for"))
        loaded = load_model(tmp_path / "model.ckpt").eval()
    assert torch.equal(loaded(images).pred_score, load_model(checkpoint).eval()(images).pred_score)


def test_folder_of_the_backbone_is_missing(mvtec_root: Path, images: torch.Tensor, tmp_path: Path) -> None:
    """The checkpoint was copied to another machine, without the folder that the backbone's weights came from."""
    folder = tmp_path / "weights"
    save_for_hf(timm.create_model("test_resnet", num_classes=7), folder, safe_serialization=True)
    options = {"backbone": f"local-dir:{folder}", "pre_trained": True, "noise_report": False}
    trained, path = fitted(SoftPatch, mvtec_root, tmp_path, **options)
    expected = trained(images).pred_score
    shutil.rmtree(folder)
    for load in (load_model, SoftPatch.load_from_checkpoint):
        assert torch.equal(load(path).eval()(images).pred_score, expected)


def test_transformer_whose_folder_is_missing(mvtec_root: Path, images: torch.Tensor, tmp_path: Path) -> None:
    """Its image size and its head are arguments of the network, which do not follow from the architecture's name."""
    folder = tmp_path / "weights"
    network = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=7, global_pool="avg")
    save_for_hf(network, folder, model_args={"img_size": 96}, safe_serialization=True)
    options = {"backbone": f"local-dir:{folder}", "layers": ["blocks.1"], "pre_trained": True, "noise_report": False}
    trained, path = fitted(SoftPatch, mvtec_root, tmp_path, **options)
    expected = trained(images).pred_score
    shutil.rmtree(folder)
    for load in (load_model, SoftPatch.load_from_checkpoint):
        assert torch.equal(load(path).eval()(images).pred_score, expected)


def test_pre_processor_that_only_pads(mvtec_root: Path, images: torch.Tensor, tmp_path: Path) -> None:
    """Then the model's input size depends on the images, and maps have the size of the padded images."""
    pre_processor = PreProcessor(Pad(8))
    trained, path = fitted(SoftPatch, mvtec_root, tmp_path, pre_processor=pre_processor, noise_report=False)
    assert trained.input_size is None
    loaded = load_model(path).eval()
    assert torch.equal(loaded(images).pred_score, trained(images).pred_score)
    assert loaded(images).anomaly_map.shape[-2:] == (80, 80)


def test_version_0_2_without_a_transform(
    mvtec_root: Path, images: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its checkpoints do not distinguish no transform from one that they could not hold. The former loads correctly."""
    trained, path = fitted(SoftPatch, mvtec_root, tmp_path, pre_processor=PreProcessor(None), noise_report=False)
    content = torch.load(path, weights_only=True)
    content["anomalib_softpatch"] = {"format": 1, "version": "0.2.0", "model": "SoftPatch"}
    torch.save(content, path)
    assert torch.equal(load_model(path).eval()(images).pred_score, trained(images).pred_score)
    assert "The checkpoint has no transform of images" in caplog.text


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (Compose([Resize((64, 96)), Pad(8)]), (80, 112)),
        (CenterCrop(48), (48, 48)),
        (Resize(64), None),
        (Grayscale(3), None),
        (None, None),
    ],
)
def test_size_after_the_pre_processor(transform: Transform | None, size: tuple[int, int] | None) -> None:
    assert SoftPatch(**SMALL, pre_processor=PreProcessor(transform)).input_size == size


def test_only_arguments_of_the_network_count(tmp_path: Path) -> None:
    """A file from somebody else cannot make timm load another file."""
    save_for_hf(timm.create_model("test_resnet"), tmp_path / "own", model_args={"checkpoint_path": "trap.bin"})
    name = portable_name(f"local-dir:{tmp_path / 'own'}")
    assert "trap.bin" in name
    PatchFeatureExtractor(name, ["layer1"], pre_trained=False)
    assert portable_name(f"local-dir:{tmp_path / 'absent'}") is None


def test_other_models(mvtec_root: Path, tmp_path: Path) -> None:
    _, path = fitted(Patchcore, mvtec_root, tmp_path)
    message = r"model\.ckpt is not a checkpoint of SoftPatch or SoftPatch\+"  # it holds classes of Anomalib
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"anomalib_softpatch": {"model": "Padim"}}, {"state_dict": {}}])
def test_files_of_something_else(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"model\.ckpt is not a checkpoint of SoftPatch or SoftPatchPlus"):
        load_model(tmp_path / "model.ckpt")


def test_broken_files(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model.ckpt"
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt"):
        load_model(broken)
    whole = checkpoint.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no checkpoint at all"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.ckpt is not a checkpoint, or is incomplete \(\d+ bytes\)"):
            load_model(broken)


class Trap:
    """Asks to run code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("code of the file was run",)


def test_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"anomalib_softpatch": {"model": "SoftPatch"}, "more": Trap()}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"it asks to run code .* Nothing has been run"):
        load_model(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is not a checkpoint, or is incomplete"):
        load_model(tmp_path / "model.ckpt")


def test_checkpoints_of_a_newer_version(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["anomalib_softpatch"] |= {"format": 99, "version": "9.8.7"}
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"written by anomalib-softpatch 9\.8\.7 in format 99"):
        load_model(tmp_path / "model.ckpt")
