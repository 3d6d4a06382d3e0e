# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images are prepared outside of the trainer's loops as by the transform of these loops."""

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.pre_processing import PreProcessor
from PIL.Image import Resampling
from torch import nn
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Pad, Resize

from anomalib_softpatch.integration.pre_processing import infer_as_trained
from anomalib_softpatch.predictions.runtimes import openvino_core

NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRANSFORMS = {
    "resize": Compose([Resize((64, 96)), NORMALIZE]),
    "alone": Resize((64, 96)),
    "crop": Compose([Resize((64, 96)), CenterCrop((48, 48)), NORMALIZE]),
    "pad, name": Compose([Resize((64, 96), interpolation="bicubic"), Pad(8), NORMALIZE]),
    "nested, number": Compose([Compose([Resize((64, 96), interpolation=Resampling.BILINEAR.value)]), NORMALIZE]),
    "bicubic": Compose([Resize((64, 96), interpolation=InterpolationMode.BICUBIC)]),
    "not antialiased": Compose([Resize((64, 96), antialias=False)]),
}
# Exports are slow: "resize" and "alone" are parts of others, and "bicubic" only has another type
IN_RUNTIMES = ["crop", "pad, name", "nested, number", "not antialiased"]
SIZES = [(64, 96), (300, 500), (20, 700), (40, 30)]


@pytest.fixture(params=TRANSFORMS)
def pre_processor(request):
    pre_processor = PreProcessor(TRANSFORMS[request.param])
    infer_as_trained(pre_processor)
    return pre_processor.eval()


def images(size: tuple[int, int], batch_size: int = 1) -> torch.Tensor:
    return torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_without_a_graph_nothing_differs(pre_processor, size):
    assert torch.equal(pre_processor(images(size)), pre_processor.transform(images(size)))


@pytest.mark.parametrize("pre_processor", IN_RUNTIMES, indirect=True)
def test_in_runtimes(pre_processor, tmp_path):
    """One file serves images of all sizes."""
    # Without antialiasing, the runtime resizes, and rounds positions in the image as PyTorch does in float32
    tolerance = 1e-4 if "antialias=False" in str(pre_processor.transform) else 1e-5
    file = str(tmp_path / "pre_processor.onnx")
    dynamic = tuple(torch.export.Dim(name) for name in ("batch", "height", "width"))
    torch.onnx.export(
        pre_processor, (images((128, 200), 2),), file, dynamo=True, verbose=False,
        dynamic_shapes={"batch": dict(zip((0, 2, 3), dynamic, strict=True))},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    compiled = openvino_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in SIZES:
        given = images(size, 2)
        expected = pre_processor.transform(given.double()).numpy()  # in float32, PyTorch rounds positions
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(compiled(given.numpy())[0], expected, rtol=0, atol=tolerance)


def test_other_modules_are_left_alone():
    for module in (None, nn.Identity(), PreProcessor(None)):
        infer_as_trained(module)
    assert PreProcessor(None).export_transform is None
