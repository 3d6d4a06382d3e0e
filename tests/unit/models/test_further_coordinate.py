# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Models whose memory bank says by a further coordinate how far each patch can vouch for others."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from scipy.ndimage import gaussian_filter

from anomalib_softpatch import SoftPatchPlus, load_memory_bank, save_memory_bank
from anomalib_softpatch.components import memory_bank
from anomalib_softpatch.models import load_model


def options() -> dict:
    return {
        "backbone": "resnet18",
        "layers": ["layer1", "layer2"],
        "pre_trained": False,
        "coreset_sampling_ratio": 0.05,
        "noise_report": False,
        "visualizer": False,
        "pre_processor": SoftPatchPlus.configure_pre_processor((64, 64)),
    }


@pytest.fixture(scope="module")
def trained(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SoftPatchPlus, Engine]:
    """Fitted as on objects in any direction, of which no patch can go."""
    model = SoftPatchPlus(**options())
    folder = tmp_path_factory.mktemp("trained")
    runner = Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_bank, "bearable_share", lambda *_: 0.0)
        patch.setattr(memory_bank, "exceptional_distances", lambda distances, _: distances)
        runner.fit(model, datamodule=MVTecAD(root=mvtec_root, category="bottle", num_workers=0))
    return model.eval(), runner


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    images = torch.full((3, 3, 64, 64), 0.5)
    images[1:, :, 16:40, 24:48] = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return images


def assert_equal(actual: object, expected: object) -> None:
    assert torch.equal(actual.pred_score, expected.pred_score)
    assert torch.equal(actual.anomaly_map, expected.anomaly_map)


def test_scores_equal_numpy(trained: tuple[SoftPatchPlus, Engine], images: torch.Tensor) -> None:
    """The patch that is nearest by the root of d squared and r squared, in float64."""
    model = trained[0].model
    assert model.denoising.shares == (0.0, 0.0)
    features = model.extract(images)
    assert model.memory_bank.shape[1] == features.shape[-1] + 1
    assert (model.memory_bank[:, -1] > 0).any()
    queries, bank = features.flatten(1, 2).double().numpy(), model.memory_bank.double().numpy()
    distances = np.linalg.norm(queries[:, :, None] - bank[None, None, :, :-1], axis=3)
    distances = np.sqrt(distances**2 + bank[:, -1] ** 2)
    output = model(images)
    start, stop = model.bank_ranges[0]
    nearest = distances[..., start:stop].min(axis=2).reshape(3, *features.shape[1:3])
    smoothed = gaussian_filter(nearest, 1, mode="nearest", truncate=3, axes=(1, 2))  # SoftPatch+'s score_smoothing
    np.testing.assert_allclose(output.pred_score, smoothed.max(axis=(1, 2)), rtol=1e-4)
    start, stop = model.bank_ranges[-1]
    grid = torch.tensor(distances[..., start:stop].min(axis=2)).view(3, 1, *features.shape[1:3]).float()
    resized = torch.nn.functional.interpolate(grid, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(output.anomaly_map, model.anomaly_map_generator.blur(resized), rtol=1e-4, atol=1e-5)


def test_reweighting_by_neighbors(trained: tuple[SoftPatchPlus, Engine], images: torch.Tensor) -> None:
    model = trained[0].model
    plain = model(images).pred_score
    try:
        model.num_neighbors = 3
        weighted = model(images).pred_score
    finally:
        model.num_neighbors = 1
    assert weighted.isfinite().all()
    assert (weighted < plain).all()


def test_state(trained: tuple[SoftPatchPlus, Engine], images: torch.Tensor) -> None:
    restored = SoftPatchPlus(**options())
    restored.load_state_dict(trained[0].state_dict())
    assert torch.equal(restored.model.memory_bank, trained[0].model.memory_bank)
    assert_equal(restored.eval()(images), trained[0](images))


def test_checkpoint(trained: tuple[SoftPatchPlus, Engine], images: torch.Tensor) -> None:
    model, runner = trained
    checkpoint = runner.trainer.checkpoint_callback.best_model_path
    for loaded in (SoftPatchPlus.load_from_checkpoint(checkpoint), load_model(checkpoint)):
        assert torch.equal(loaded.model.memory_bank, model.model.memory_bank)
        assert_equal(loaded.eval()(images), model(images))


def test_memory_bank_file(trained: tuple[SoftPatchPlus, Engine], images: torch.Tensor, tmp_path: Path) -> None:
    path = save_memory_bank(trained[0], tmp_path / "bank.safetensors")
    loaded = SoftPatchPlus(**options()).eval()
    load_memory_bank(loaded, path)
    assert torch.equal(loaded.model.memory_bank, trained[0].model.memory_bank)
    assert_equal(loaded(images), trained[0](images))


def test_onnx(trained: tuple[SoftPatchPlus, Engine], images: torch.Tensor, tmp_path: Path) -> None:
    model, runner = trained
    file = runner.export(model, ExportType.ONNX, export_root=tmp_path)
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
