# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What happens around a fit: checks, the noise report, and a frozen backbone."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from PIL import Image
from torchvision.transforms.v2 import RandomHorizontalFlip

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.components import PatchFeatureExtractor, feature_cache
from anomalib_softpatch.integration.distributed import DistributedFit
from anomalib_softpatch.models.callbacks import FitChecks, NoiseReport


def make_model(model_class=SoftPatch, **options):
    small = {"backbone": "test_resnet", "layers": ["layer1", "layer2"], "pre_trained": False, "visualizer": False}
    pre_processor = model_class.configure_pre_processor((64, 64))
    return model_class(**small, coreset_sampling_ratio=0.01, pre_processor=pre_processor, **options)


def make_engine(folder, **options):
    return Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False, **options)


@pytest.fixture
def datamodule(mvtec_root):
    return MVTecAD(root=mvtec_root, category="bottle", train_batch_size=3, eval_batch_size=3, num_workers=0)


# Checks before the features are extracted


def test_precision_that_the_device_does_not_support(monkeypatch):
    def refuse(*_args):
        msg = "not implemented for 'Half'"
        raise RuntimeError(msg)

    model = make_model(precision="float16")
    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    trainer = SimpleNamespace(progress_bar_callback=None, is_global_zero=True)
    with pytest.raises(ValueError, match=r"precision=float16 does not work on cpu: .*'Half'\. Use 'float32'"):
        FitChecks().on_fit_start(trainer, model)


def test_features_of_an_interrupted_fit_are_forgotten(datamodule, tmp_path):
    model = make_model(noise_report=False)
    model.model.feature_store.append(torch.randn(3, 16, 16, 192), ["a", "b", "c"])
    make_engine(tmp_path).fit(model, datamodule=datamodule)
    assert len(model.model.denoising.keys) == 8


@pytest.mark.parametrize(
    ("progress_bar", "first", "shown"), [(None, True, False), (object(), True, True), (object(), False, False)]
)
def test_progress_is_shown_if_others_show_it(progress_bar, first, shown):
    model = make_model()
    FitChecks().on_fit_start(SimpleNamespace(progress_bar_callback=progress_bar, is_global_zero=first), model)
    assert model.model.memory_bank_builder.progress is shown


# Fitted again


@pytest.fixture
def darker(mvtec_root, tmp_path):
    """Other training images than those of `datamodule`."""
    for index, path in enumerate(sorted((mvtec_root / "bottle" / "train" / "good").iterdir())):
        target = tmp_path / "darker" / "bottle" / "train" / "good" / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).point(lambda value: value // 2).save(target)
    shutil.copytree(mvtec_root / "bottle" / "test", tmp_path / "darker" / "bottle" / "test")
    shutil.copytree(mvtec_root / "bottle" / "ground_truth", tmp_path / "darker" / "bottle" / "ground_truth")
    return MVTecAD(root=tmp_path / "darker", category="bottle", num_workers=0)


@pytest.mark.parametrize("limit", [1.0, 0])
def test_fitted_again(limit, datamodule, darker, tmp_path):
    """The second memory bank is that of a new model, and no features are left."""
    model, new = make_model(noise_report=False), make_model(noise_report=False)
    make_engine(tmp_path, limit_val_batches=limit).fit(model, datamodule=datamodule)
    first = model.model.memory_bank
    make_engine(tmp_path, limit_val_batches=limit).fit(model, datamodule=darker)
    make_engine(tmp_path, limit_val_batches=limit).fit(new, datamodule=darker)
    assert torch.equal(model.model.memory_bank, new.model.memory_bank)
    assert not torch.equal(model.model.memory_bank, first)
    assert model.model.feature_store.shape == (0, 0, 0, 0)
    assert model._is_fitted.all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_fit_leaves_the_model_as_it_was(error, datamodule, darker, tmp_path, monkeypatch):
    model = make_model(noise_report=False)
    make_engine(tmp_path).fit(model, datamodule=datamodule)
    bank, weights = model.model.memory_bank, model.model.weights

    def interrupt(*_args):
        assert model.model.feature_store.shape[0] == 8
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(model.model.memory_bank_builder, "fit", interrupt)
        with pytest.raises((error, SystemExit)):
            make_engine(tmp_path).fit(model, datamodule=darker)
    assert model.model.feature_store.shape == (0, 0, 0, 0)
    make_engine(tmp_path).validate(model, datamodule=datamodule)
    assert torch.equal(model.model.memory_bank, bank)
    assert torch.equal(model.model.weights, weights)


# Features on disk


def test_bank_is_the_same_with_features_from_disk(datamodule, tmp_path, monkeypatch):
    """Also with other options of the memory bank, and without running the backbone."""
    cache = str(tmp_path / "cache")

    def fit(name, **options):
        model = make_model(noise_report=False, **options)
        make_engine(tmp_path / name).fit(model, datamodule=datamodule)
        return model

    expected = fit("without", threshold=0.3)
    first = fit("first", feature_cache=cache)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(entries) == 8 + 8  # training and validation images
    monkeypatch.setattr(PatchFeatureExtractor, "_extract", lambda *_: pytest.fail("the backbone was run"))
    second = fit("second", threshold=0.3, feature_cache=cache)
    assert torch.equal(second.model.memory_bank, expected.model.memory_bank)
    assert torch.equal(second.model.weights, expected.model.weights)
    assert torch.equal(second.post_processor.image_threshold, expected.post_processor.image_threshold)
    assert not torch.equal(first.model.weights, expected.model.weights)
    assert entries == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert "feature_cache" not in second.hparams  # checkpoints do not depend on a machine


def test_a_stopped_fit_continues(datamodule, tmp_path, monkeypatch):
    model = make_model(noise_report=False, feature_cache=str(tmp_path / "cache"))
    extract = PatchFeatureExtractor._extract
    passed = []

    def stop(extractor, images):
        passed.extend(images)
        if len(passed) > 6:
            raise KeyboardInterrupt
        return extract(extractor, images)

    with monkeypatch.context() as patched:
        patched.setattr(PatchFeatureExtractor, "_extract", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            make_engine(tmp_path / "stopped").fit(model, datamodule=datamodule)
    assert model.model.feature_cache is None
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6
    make_engine(tmp_path / "again").fit(model, datamodule=datamodule)
    expected = make_model(noise_report=False)
    make_engine(tmp_path / "without").fit(expected, datamodule=datamodule)
    assert torch.equal(model.model.memory_bank, expected.model.memory_bank)


def test_images_that_are_tested_are_not_kept(datamodule, tmp_path):
    model = make_model(noise_report=False, feature_cache=str(tmp_path / "cache"))
    runner = make_engine(tmp_path, limit_val_batches=0)
    runner.fit(model, datamodule=datamodule)
    runner.test(model, datamodule=datamodule)
    runner.predict(model, datamodule=datamodule)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 8


def test_augmented_images_have_features_of_their_own(mvtec_root, tmp_path):
    """The bank is that of the augmented images, although features of the same files are in the cache."""
    cache = str(tmp_path / "cache")
    banks = {}
    for name, augmentation, options in (
        ("plain", None, {"feature_cache": cache}),
        ("cached", RandomHorizontalFlip(1.0), {"feature_cache": cache}),
        ("flipped", RandomHorizontalFlip(1.0), {}),
    ):
        data = MVTecAD(root=mvtec_root, category="bottle", train_augmentations=augmentation, num_workers=0)
        model = make_model(noise_report=False, **options)
        make_engine(tmp_path / name, limit_val_batches=0).fit(model, datamodule=data)
        banks[name] = model.model.memory_bank
    assert torch.equal(banks["cached"], banks["flipped"])
    assert not torch.equal(banks["cached"], banks["plain"])


def test_no_room_for_the_features_is_known_after_the_first_batch(datamodule, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
    model = make_model(noise_report=False, feature_cache=str(tmp_path / "cache"))
    with pytest.raises(OSError, match=r"features of 8 images take .* Give feature_cache a folder on a larger disk"):
        make_engine(tmp_path).fit(model, datamodule=datamodule)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


# The noise report


@pytest.mark.parametrize(("model_class", "limit"), [(SoftPatch, 0), (SoftPatchPlus, 1.0)])
def test_report_with_and_without_validation(model_class, limit, datamodule, tmp_path):
    model = make_model(model_class)
    make_engine(tmp_path, limit_val_batches=limit).fit(model, datamodule=datamodule)
    assert model.model.bank_ranges
    assert len(list(tmp_path.rglob("noise_report/report.html"))) == 1
    assert len(list(tmp_path.rglob("noise_report/images.csv"))) == 1


def test_no_report_unless_asked_for(datamodule, tmp_path):
    kinds = [
        [type(callback) for callback in make_model(noise_report=wanted).configure_callbacks()]
        for wanted in (True, False)
    ]
    assert kinds[0] == [*kinds[1], NoiseReport]
    assert NoiseReport not in kinds[1]
    make_engine(tmp_path, limit_val_batches=0).fit(make_model(noise_report=False), datamodule=datamodule)
    assert not list(tmp_path.rglob("noise_report"))


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_rank_reports(first, monkeypatch):
    reported = []
    monkeypatch.setattr("anomalib_softpatch.models.fit_report.report_fit", reported.append)
    module = SimpleNamespace(on_train_epoch_end=lambda: None)
    NoiseReport().on_train_epoch_end(SimpleNamespace(is_global_zero=first), module)
    assert reported == ([module] if first else [])


# A frozen backbone


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_frozen_backbone_stays_frozen(datamodule, tmp_path):
    model, runner = make_model(noise_report=False), make_engine(tmp_path)
    model.requires_grad_(False)
    for run in (runner.fit, runner.test, runner.validate, runner.predict, runner.fit):
        run(model, datamodule=datamodule)
        assert not trainable(model)


@pytest.mark.parametrize("frozen", [True, False])
def test_weights_are_shared_on_several_devices(frozen, monkeypatch):
    """All ranks get those of rank 0, and no gradients: trainable parameters stay so, and the model is not wrapped."""
    model, strategy, sent = make_model(), DDPStrategy(), []
    model.requires_grad_(not frozen)
    before = trainable(model)
    strategy.model = model
    monkeypatch.setattr(
        torch.distributed, "broadcast", lambda tensor, src: (sent.append(tensor), tensor.fill_(src + 7))
    )
    DistributedFit().setup(SimpleNamespace(strategy=strategy), model, "fit")
    strategy.configure_ddp()
    assert strategy.model is model
    assert trainable(model) == before
    tensors = [tensor for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor) and tensor.numel()]
    assert len(sent) == len(tensors)
    assert all((tensor == 7).all() for tensor in tensors if tensor.dtype != torch.bool)


def test_other_strategies_stay_as_they_are():
    strategy = SingleDeviceStrategy()
    before = vars(strategy).copy()
    DistributedFit().setup(SimpleNamespace(strategy=strategy), make_model(), "fit")
    assert vars(strategy) == before
