# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Exported models in Anomalib's inferencers and in the runtimes themselves, compared with the torch model."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType, OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from PIL import Image

from anomalib_softpatch import SoftPatchPlus
from anomalib_softpatch.components import MemoryBank
from anomalib_softpatch.components.search import bounds, graph, scores
from anomalib_softpatch.integration.compression import resize_operations, search_operations
from anomalib_softpatch.predictions.runtimes import openvino_core

SETTINGS = {  # for SoftPatch, which has no radii, see `test_same_answer.py`
    "vision transformer, unfold, two banks, weights, 5 neighbors": lambda: SoftPatchPlus(
        **BACKBONE | {"backbone": "test_vit", "layers": ["blocks.0", "blocks.1"]},
        patch_embedding="unfold", segmentation_threshold=0.3, soft_weight=True, num_neighbors=5,
    ),
    "pruned search": lambda: SoftPatchPlus(**BACKBONE | {"coreset_sampling_ratio": 0.2}),
}  # fmt: skip
BACKBONE = {
    "backbone": "test_resnet",
    "layers": ["layer1", "layer2"],
    "pre_trained": False,
    "coreset_sampling_ratio": 0.02,
    "visualizer": False,
    "pre_processor": SoftPatchPlus.configure_pre_processor((128, 128)),
}


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", params=SETTINGS)
def trained(request, mvtec_root, tmp_path_factory, monkeypatch_module):
    folder = tmp_path_factory.mktemp("export")
    if "pruned" in request.param:
        monkeypatch_module.setattr(graph, "SMALLEST_INDEX", 0)
        monkeypatch_module.setattr(scores, "SMALLEST_OWN_PART", 0)
        monkeypatch_module.setattr(bounds, "EXPLAINED_VARIANCE", 0.1)
        monkeypatch_module.setattr(bounds, "LARGEST_REST", float("inf"))
    model = SETTINGS[request.param]()
    engine = Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)
    engine.fit(model, datamodule=MVTecAD(root=mvtec_root, category="bottle", num_workers=0))
    assert bool((model.model.radii > 0).all())
    inner = model.model
    # The radii are doubled, so that they determine many scores of images that are not like the training images
    features, weights = inner.memory_bank.clone(), inner.weights.clone()
    inner.set_memory_bank(MemoryBank(features, weights, 2 * inner.radii, inner.bank_ranges))
    return engine, model.eval(), folder


@pytest.fixture(scope="module")
def onnx_file(trained):
    engine, model, folder = trained
    return engine.export(model, ExportType.ONNX, export_root=folder / "onnx")


@pytest.fixture(scope="module")
def openvino_file(trained, onnx_file):
    """Convert the same graph. `test_predict.py` tests that the OpenVINO export makes the graph itself."""
    engine, model, folder = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "to_onnx", lambda *_args, **_kwargs: onnx_file)
        return engine.export(model, ExportType.OPENVINO, export_root=folder / "openvino")


def random_images(batch_size: int, size: tuple[int, int]) -> torch.Tensor:
    """Return images like the training images, with a black square for high scores."""
    images = 0.4 + 0.2 * torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(1))
    images[:, :, 16:40, 24:48] = 0
    return images


def count_radii(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Return the number of patches of the images whose score is determined by a support radius."""
    inner = model.model
    with torch.no_grad():
        queries = inner.extract(model.pre_processor(images)).flatten(0, 2)
        plain = torch.cdist(queries, inner.memory_bank)
    bounded = torch.maximum(plain, inner.radii)
    nearest = bounded.argmin(dim=1)
    return int((bounded > plain).gather(1, nearest[:, None]).sum())


def test_radii_count(trained):
    """Otherwise, the tests below would not test the radii."""
    _, model, _ = trained
    assert count_radii(model, random_images(2, (128, 128))) > 10


def assert_close(actual, expected) -> None:
    """Check that the largest difference is at most 1e-3 of the largest value."""
    actual, expected = np.asarray(actual).squeeze(), np.asarray(expected).squeeze()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-3 * np.abs(expected).max()


INPUTS = [(1, (128, 128)), (4, (128, 128)), (2, (96, 160))]


@pytest.mark.parametrize(("batch_size", "size"), INPUTS)
def test_onnxruntime(trained, onnx_file, batch_size, size):
    images = random_images(batch_size, size)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {session.get_inputs()[0].name: images.numpy()}), strict=True))
    with torch.no_grad():
        expected = trained[1](images)
    assert_close(outputs["pred_score"], expected.pred_score)
    assert_close(outputs["anomaly_map"], expected.anomaly_map)


@pytest.mark.parametrize(("batch_size", "size"), INPUTS)
def test_openvino(trained, openvino_file, batch_size, size):
    images = random_images(batch_size, size)
    # In float32 for reference: by default, OpenVINO computes in bfloat16 if the processor supports it
    compiled = openvino_core().compile_model(str(openvino_file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(images.numpy())
    with torch.no_grad():
        expected = trained[1](images)
    assert_close(outputs["pred_score"], expected.pred_score)
    assert_close(outputs["anomaly_map"], expected.anomaly_map)


def test_inferencers(trained, openvino_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # OpenVINOInferencer makes a folder for its cache in the working folder
    engine, model, folder = trained
    torch_file = engine.export(model, ExportType.TORCH, export_root=folder / "torch")
    image = tmp_path / "image.png"
    pixels = (255 * random_images(1, (128, 128))[0].permute(1, 2, 0)).byte().numpy()
    Image.fromarray(pixels).save(image)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")  # Anomalib requires it to unpickle a model
    prediction = TorchInferencer(torch_file, device="cpu").predict(image)
    assert_close(prediction.pred_score, expected.pred_score)
    assert_close(prediction.anomaly_map, expected.anomaly_map)
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    prediction = OpenVINOInferencer(openvino_file, device="CPU", config=config).predict(image)
    assert_close(prediction.pred_score, expected.pred_score)
    assert_close(prediction.anomaly_map, expected.anomaly_map)


def test_search_is_pruned(trained, onnx_file, request):
    """The search is pruned if the bank is large, and no index is left in the model."""
    _, model, _ = trained
    operators = [node.op_type for node in onnx.load(onnx_file, load_external_data=False).graph.node]
    pruned = "pruned" in request.node.callspec.params["trained"]
    assert ("GatherElements" in operators and "NonZero" in operators) == pruned
    assert model.model._graph_search is None


@pytest.mark.parametrize("trained", ["pruned search"], indirect=True)
def test_compression_leaves_the_pruned_search_out(trained, onnx_file):
    """All products but the backbone's, of which there are none: the axes, the bounds and the plain search."""
    pruned = openvino.convert_model(onnx_file)
    names = {*resize_operations(pruned), *search_operations(pruned, trained[1].model.memory_bank)}
    kinds = {"MatMul": set(), "Convolution": set()}
    for operation in pruned.get_ops():
        kinds.get(operation.get_type_name(), set()).add(operation.get_friendly_name())
    assert len(kinds["MatMul"]) > 3
    assert kinds["MatMul"] <= names
    # The smoothing of the map comes after the search, the backbone before
    backbone = [each for each in trained[1].model.feature_extractor.modules() if isinstance(each, torch.nn.Conv2d)]
    assert len(kinds["Convolution"] - names) == len(backbone)


def test_weights_are_inside(trained, onnx_file):
    """The export is a single file, so that no part of it can get lost."""
    assert [path.name for path in Path(onnx_file).parent.iterdir()] == [Path(onnx_file).name]
    bank = trained[1].model.memory_bank
    assert Path(onnx_file).stat().st_size > bank.numel() * bank.element_size()
