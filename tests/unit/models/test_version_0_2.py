# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints and memory bank files of version 0.2: without radii, and some with an additional coordinate instead.

The additional coordinate of a patch told how far it could support others; that of test patches was 0.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter

from anomalib_softpatch import SoftPatchPlus, load_memory_bank, save_memory_bank
from anomalib_softpatch.models import load_model

# As SoftPatchPlus of version 0.2 had them by default
GONE = {
    "discriminators": ("simplified_lof",),
    "classification_threshold": "auto",
    "segmentation_threshold": "auto",
    "prototypes": True,
}
VERSION = {"format": 1, "version": "0.2.0", "model": "SoftPatchPlus"}


def options() -> dict:
    return {
        "backbone": "test_resnet",
        "layers": ["layer1", "layer2"],
        "pre_trained": False,
        "coreset_sampling_ratio": 0.05,
        "noise_report": False,
        "visualizer": False,
        "pre_processor": SoftPatchPlus.configure_pre_processor((64, 64)),
    }


def new_engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)


@pytest.fixture(scope="module")
def datamodule(mvtec_root: Path) -> MVTecAD:
    return MVTecAD(root=mvtec_root, category="bottle", num_workers=0)


ADDITIONAL = "with an additional coordinate"  # which needs more than a bank without


@pytest.fixture(scope="module", params=[ADDITIONAL, "without"])
def old(request: pytest.FixtureRequest, datamodule: MVTecAD, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Path of a checkpoint as version 0.2 wrote it, and the bank, the additional coordinate and the ranges in it."""
    folder = tmp_path_factory.mktemp("old")
    runner = new_engine(folder)
    runner.fit(SoftPatchPlus(**options()), datamodule=datamodule)
    content = torch.load(runner.trainer.checkpoint_callback.best_model_path, weights_only=True)
    state, hyper_parameters = content["state_dict"], content["hyper_parameters"]
    del state["model.radii"]
    bank = state["model.memory_bank"]
    generator = torch.Generator().manual_seed(0)
    additional = bank.std() * torch.rand(len(bank), generator=generator) if request.param == ADDITIONAL else None
    if additional is not None:
        state["model.memory_bank"] = torch.cat((bank, additional[:, None]), dim=1)
    ranges = ((0, len(bank) - 30), (50, len(bank)))
    state["model._extra_state"]["banks"] = [list(rows) for rows in ranges]
    for name in ("min_images", "neighborhood"):
        hyper_parameters.pop(name, None)
    hyper_parameters |= GONE
    content["anomalib_softpatch"] = VERSION
    torch.save(content, folder / "old.ckpt")
    return folder / "old.ckpt", SimpleNamespace(bank=bank, additional=additional, ranges=ranges)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    images = torch.full((3, 3, 64, 64), 0.5)
    images[1:, :, 16:40, 24:48] = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return images


def check_scores(model: SoftPatchPlus, content: SimpleNamespace, images: torch.Tensor) -> None:
    """Scores use the distance d to the nearest patch, or with an additional coordinate r, the root of d² + r²."""
    inner = model.eval().model
    features = inner.extract(images)
    queries, bank = features.flatten(1, 2).double().numpy(), content.bank.double().numpy()
    distances = np.linalg.norm(queries[:, :, None] - bank[None, None], axis=3)
    if content.additional is not None:
        distances = np.sqrt(distances**2 + content.additional.double().numpy() ** 2)
    with torch.no_grad():
        output = inner(images)
    start, stop = content.ranges[0]
    nearest = distances[..., start:stop].min(axis=2).reshape(3, *features.shape[1:3])
    smoothed = gaussian_filter(nearest, 1, mode="nearest", truncate=3, axes=(1, 2))  # SoftPatch+'s score_smoothing
    np.testing.assert_allclose(output.pred_score, smoothed.max(axis=(1, 2)), rtol=1e-4)
    start, stop = content.ranges[1]
    grid = torch.tensor(distances[..., start:stop].min(axis=2)).view(3, 1, *features.shape[1:3]).float()
    resized = torch.nn.functional.interpolate(grid, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(output.anomaly_map, inner.anomaly_map_generator.blur(resized), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("load", [SoftPatchPlus.load_from_checkpoint, load_model])
def test_checkpoint(load: Callable, old: tuple, images: torch.Tensor) -> None:
    path, content = old
    model = load(path)
    assert model.model.radii.tolist() == [0.0] * len(content.bank)
    check_scores(model, content, images)
    builder = model.model.memory_bank_builder
    assert (builder.discriminators, builder.thresholds) == (("knn",), (0.0, 0.0))
    assert (builder.min_images, builder.neighborhood) == (1, 0)
    assert "prototypes" not in model.hparams


@pytest.mark.parametrize("old", [ADDITIONAL], indirect=True)
def test_command_line(old: tuple, images: torch.Tensor, datamodule: MVTecAD, tmp_path: Path) -> None:
    """The model that `anomalib predict` makes for the checkpoint, and its scores after loading it."""
    path, content = old
    data = ["--data", "MVTecAD", f"--data.root={datamodule.root}", "--data.category=bottle"]
    arguments = ["predict", "--model=SoftPatchPlus", f"--ckpt_path={path}", *data]
    model = AnomalibCLI(arguments, run=False).model
    assert model.model.memory_bank_builder.min_images == 1
    assert not model.model.bank_ranges
    model.visualizer = None
    new_engine(tmp_path).predict(model, datamodule=datamodule, ckpt_path=path)
    check_scores(model, content, images)


@pytest.mark.parametrize("old", [ADDITIONAL], indirect=True)
def test_reweighting_by_neighbors(old: tuple, images: torch.Tensor) -> None:
    model = load_model(old[0]).eval().model
    plain = model(images).pred_score
    model.num_neighbors = 3
    weighted = model(images).pred_score
    assert weighted.isfinite().all()
    assert (weighted < plain).all()


def test_memory_bank_file(old: tuple, images: torch.Tensor, tmp_path: Path) -> None:
    """A file of format 1 has no radii."""
    path, content = old
    file = save_memory_bank(load_model(path), tmp_path / "bank.safetensors")
    tensors = load_file(file)
    del tensors["radii"]
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() | {"format": json.dumps(1), "version": json.dumps("0.2.0")}
    save_file(tensors, file, metadata)
    loaded = SoftPatchPlus(**options())
    load_memory_bank(loaded, file)
    check_scores(loaded, content, images)


@pytest.mark.parametrize("old", [ADDITIONAL], indirect=True)
def test_another_fit_has_radii(old: tuple) -> None:
    """The new bank has radii and no additional coordinate."""
    path, content = old
    model = SoftPatchPlus.load_from_checkpoint(path, min_images="auto", neighborhood=1).model
    model.train()(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(3)))
    model.fit()
    assert model.memory_bank.shape[1] == content.bank.shape[1]
    assert (model.radii > 0).all()


@pytest.mark.parametrize("old", [ADDITIONAL], indirect=True)
def test_onnx(old: tuple, images: torch.Tensor, tmp_path: Path) -> None:
    model = load_model(old[0]).eval()
    file = new_engine(tmp_path).export(model, ExportType.ONNX, export_root=tmp_path)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in (images, images[:1]):
        found = dict(zip(names, session.run(None, {session.get_inputs()[0].name: batch.numpy()}), strict=True))
        with torch.no_grad():
            expected = model(batch)
        for name in ("pred_score", "anomaly_map"):
            np.testing.assert_allclose(
                found[name].squeeze(), getattr(expected, name).numpy().squeeze(), rtol=1e-3, atol=1e-4
            )
