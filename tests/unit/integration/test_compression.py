# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Compression to eight bits through Anomalib's options: the backbone's, not the memory bank's."""

import nncf
import numpy as np
import openvino
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import CompressionType
from anomalib.metrics import AUROC
from anomalib.models.components.base.export_mixin import ExportMixin
from sklearn.metrics import roc_auc_score

from anomalib_softpatch import SoftPatchPlus
from anomalib_softpatch.integration.compression import compress, measure, resize_operations
from anomalib_softpatch.predictions.runtimes import openvino_core


@pytest.fixture(scope="module")
def model():
    """Trained SoftPatchPlus: two banks whose patches have radii, the search runs in three parts.

    That the pruned search of large banks is left out, too, is checked in `end_to_end/test_export.py`.
    """
    torch.manual_seed(0)
    model = SoftPatchPlus(
        backbone="test_resnet",
        layers=["layer1", "layer2"],
        pre_trained=False,
        coreset_sampling_ratio=0.3,
        segmentation_threshold=0.3,
        pre_processor=SoftPatchPlus.configure_pre_processor((64, 64)),
        post_processor=False,
        visualizer=False,
    )
    model.model.memory_bank_builder.progress = False
    model.model.train()
    model.model(torch.rand(6, 3, 64, 64))
    model.model.fit()
    return model.eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return openvino.convert_model(model.to_onnx(tmp_path_factory.mktemp("onnx"), verbose=False))


ALL_TYPES = [CompressionType.INT8, CompressionType.INT8_PTQ, CompressionType.INT8_ACQ]


@pytest.mark.parametrize("compression", ALL_TYPES)
def test_search_stays_in_full_precision(model, exported, compression, mvtec_root):
    data = MVTecAD(root=mvtec_root, category="bottle", num_workers=0)
    compressed = model._compress_ov_model(exported.clone(), compression, data)

    constants = [operation for operation in compressed.get_ops() if operation.get_type_name() == "Constant"]
    types = {constant.get_element_type() for constant in constants if constant.get_output_size() > 0}
    assert types & {openvino.Type.i8, openvino.Type.u8}  # the backbone is compressed
    bank = model.model.memory_bank.numpy()
    rows = [
        constant.data
        for constant in constants
        if constant.get_element_type() == openvino.Type.f32 and list(constant.shape)[1:] == [bank.shape[1]]
    ]
    assert {row.tobytes() for row in np.concatenate(rows)} >= {row.tobytes() for row in bank}
    products = [operation for operation in compressed.get_ops() if operation.get_type_name() == "MatMul"]
    resize = set(resize_operations(compressed))
    of_resize = [product for product in products if product.get_friendly_name() in resize]
    assert (len(products), len(of_resize)) == (5, 2)
    for product in products:
        inputs = {port.get_source_output().get_node().get_type_name() for port in product.inputs()}
        assert "FakeQuantize" not in inputs if product in of_resize else inputs <= {"Multiply", "Constant"}

    # The features of an untrained network differ a little with weights in eight bits, and a lot with activations, too.
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    output = openvino_core().compile_model(compressed, "CPU", hint)(image.numpy())
    with torch.no_grad():
        expected = model(image)
    tolerance = 0.2 if compression == CompressionType.INT8 else 1.0
    assert output["pred_score"] == pytest.approx(expected.pred_score.numpy(), rel=tolerance)


def test_unprotected_compression_quantizes_the_bank(exported, model):
    """Without our code, the bank would be compressed, too."""
    bank = model.model.memory_bank.numpy()
    compressed = nncf.compress_weights(exported.clone())
    assert not any(
        operation.get_type_name() == "Constant"
        and operation.get_element_type() == openvino.Type.f32
        and list(operation.shape)[1:] == [bank.shape[1]]
        for operation in compressed.get_ops()
    )


@pytest.mark.parametrize("compression", ALL_TYPES[:2])
def test_anomalib_compresses_alike_where_nothing_is_left_out(
    model, exported, compression, mvtec_root, monkeypatch
) -> None:
    """Its options mean for our models what they mean for others."""
    # The third type is not tested: Anomalib expects labels in the output for it.
    # Anomalib has no option for operations to leave out: without any, its calls and ours must give the same file.
    for name in ("resize_operations", "search_operations"):
        monkeypatch.setattr(f"anomalib_softpatch.integration.compression.{name}", lambda *_: [])
    data = MVTecAD(root=mvtec_root, category="bottle", num_workers=0)
    ours = compress(exported.clone(), model.model.memory_bank, compression, data)
    theirs = ExportMixin._compress_ov_model(model, exported.clone(), compression, data)
    assert constants_of(ours) == constants_of(theirs)
    assert constants_of(ours) != constants_of(exported)


def constants_of(model: openvino.Model) -> list[bytes]:
    operations = [each for each in model.get_ordered_ops() if each.get_type_name() == "Constant"]
    return sorted(each.data.tobytes() for each in operations if each.get_output_size())


def test_bad_input_is_refused(model, exported, mvtec_root) -> None:
    bank = model.model.memory_bank
    data = MVTecAD(root=mvtec_root, category="bottle", num_workers=0)
    with pytest.raises(ValueError, match="INT8_PTQ compression needs images: give a datamodule"):
        compress(exported, bank, CompressionType.INT8_PTQ)
    with pytest.raises(ValueError, match=r"max_drop=1\.5 must be between 0 and 1"):
        compress(exported, bank, CompressionType.INT8_ACQ, data, max_drop=1.5)
    with pytest.raises(ValueError, match="is not INT8, INT8_PTQ or INT8_ACQ"):
        compress(exported, bank, CompressionType.FP16, data)
    with pytest.raises(ValueError, match="search in the memory bank was not found"):
        compress(exported, bank + 1, CompressionType.INT8)


def test_the_accuracy_is_that_of_the_images(model, exported, mvtec_root) -> None:
    data = MVTecAD(root=mvtec_root, category="bottle", num_workers=0, eval_batch_size=3)
    data.setup()
    compiled = openvino_core().compile_model(exported, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    metric = AUROC(fields=["pred_score", "gt_label"])
    scores, labels = [], []
    with torch.no_grad():
        for item in data.test_data:
            scores.append(model(item.image[None]).pred_score.item())
            labels.append(int(item.gt_label))
    for _ in range(2):  # reset in between
        assert measure(compiled, data.test_dataloader(), metric) == pytest.approx(roc_auc_score(labels, scores))
