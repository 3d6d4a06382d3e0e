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

from anomalib_softpatch import SoftPatchPlus


@pytest.fixture(scope="module")
def model():
    """Trained SoftPatchPlus: two banks, the search runs in three parts."""
    torch.manual_seed(0)
    model = SoftPatchPlus(
        backbone="resnet18",
        layers=["layer1", "layer2"],
        pre_trained=False,
        coreset_sampling_ratio=0.3,
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


@pytest.mark.parametrize("compression", [CompressionType.INT8, CompressionType.INT8_PTQ])
def test_search_stays_in_full_precision(model, exported, compression, mvtec_root):
    data = MVTecAD(root=mvtec_root, category="bottle", num_workers=0)
    compressed = model._compress_ov_model(exported.clone(), compression, data)

    assert "ignored_scope" not in str(nncf.quantize)  # Anomalib's other models are compressed as ever
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
    assert len(products) == 3
    for product in products:
        for port in product.inputs():
            assert port.get_source_output().get_node().get_type_name() in {"Multiply", "Constant"}

    # With weights in eight bits the features of an untrained network differ a little, with activations too a lot.
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    output = openvino.Core().compile_model(compressed, "CPU", hint)(image.numpy())
    with torch.no_grad():
        expected = model(image)
    tolerance = {CompressionType.INT8: 0.2, CompressionType.INT8_PTQ: 1.0}[compression]
    assert output["pred_score"] == pytest.approx(expected.pred_score.numpy(), rel=tolerance)


def test_unprotected_compression_quantizes_the_bank(exported, model):
    """What the test above checks is not so by itself."""
    bank = model.model.memory_bank.numpy()
    compressed = nncf.compress_weights(exported.clone())
    assert not any(
        operation.get_type_name() == "Constant"
        and operation.get_element_type() == openvino.Type.f32
        and list(operation.shape)[1:] == [bank.shape[1]]
        for operation in compressed.get_ops()
    )
