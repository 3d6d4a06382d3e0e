# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``verify``, on exported files that score an image by its mean."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper
from PIL import Image

from anomalib_softpatch.cli import main
from anomalib_softpatch.predictions.golden import SIZES, GoldenImage, make_image
from anomalib_softpatch.predictions.metadata import Metadata, write_metadata
from anomalib_softpatch.predictions.verification import check_file, verify


def golden() -> list[GoldenImage]:
    """Compute the expected scores with NumPy in float64."""
    means = [make_image(seed, *size).astype(np.float64).mean() for seed, size in enumerate(SIZES)]
    return [
        GoldenImage(seed, *size, float(mean), bool(mean > 0.4))
        for seed, (size, mean) in enumerate(zip(SIZES, means, strict=True))
    ]


def export(folder: Path, images: list[GoldenImage], kind: str = "onnx", batch_size: int | str = "batch") -> Path:
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pred_score"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["input"], ["anomaly_map"], axes=[1], keepdims=1),
        helper.make_node("Greater", ["pred_score", "threshold"], ["pred_label"]),
    ]
    outputs = [
        helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, [batch_size]),
        helper.make_tensor_value_info("pred_label", TensorProto.BOOL, [batch_size]),
        helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [batch_size, 1, "height", "width"]),
    ]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch_size, 3, "height", "width"])
    threshold = helper.make_tensor("threshold", TensorProto.FLOAT, [1], [0.4])
    graph = helper.make_graph(nodes, "mean", [image], outputs, [threshold])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = folder / "model.onnx"
    onnx.save(model, file)
    if images:
        write_metadata(file, Metadata(golden=images))
    if kind == "openvino":
        openvino.save_model(openvino.convert_model(file), folder / "model.xml", compress_to_fp16=False)
        return folder / "model.xml"
    return file


@pytest.mark.parametrize("batch_size", ["batch", 4])
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_file_that_decides_as_the_model(kind, batch_size, tmp_path, capsys):
    main(["verify", str(export(tmp_path, golden(), kind, batch_size))])
    line = capsys.readouterr().out.splitlines()[0]
    assert ", float32, against the model: 3 images, scores differ by up to " in line
    assert ", 0 verdicts differ, " in line


def test_images(tmp_path, capsys):
    """On given images, the runtime's own data type is compared with float32."""
    for number in range(3):
        Image.fromarray(np.full((20, 30 + number), 80 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    verify(export(tmp_path, golden()), tmp_path)
    assert "against float32: 3 images, scores differ by up to 0, 0 verdicts differ" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize(("shift", "flip"), [(0.01, False), (0.0, True)])
def test_a_file_that_decides_differently(shift, flip, kind, tmp_path, capsys, caplog):
    first, *others = golden()
    first = replace(first, score=first.score + shift, anomalous=first.anomalous != flip)
    file = export(tmp_path, [first, *others], kind)
    with pytest.raises(SystemExit) as end:
        main(["verify", str(file)])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert f"{file} does not decide on this machine as the model did" in printed.err
    assert f"{int(flip)} verdicts differ" in printed.out
    with caplog.at_level(logging.INFO):
        check_file(file)
    (record,) = [each for each in caplog.records if str(file) in each.getMessage()]
    assert record.levelno == logging.WARNING


def test_files_without_golden_images(tmp_path, caplog):
    with pytest.raises(ValueError, match="holds no golden images"):
        verify(export(tmp_path, []))
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    check_file(tmp_path / "broken.onnx")  # does not stop an export
    assert "broken.onnx was not compared with the model" in caplog.text


def test_golden_images_are_the_same_everywhere():
    """They are integers from NumPy's generator, divided once."""
    image = make_image(0, 33, 50)
    assert (image.shape, image.dtype) == ((1, 3, 33, 50), np.float32)
    assert (255 * image.astype(np.float64)).round(3).max() <= 255
    np.testing.assert_array_equal(image, make_image(0, 33, 50))
    assert np.abs(image - make_image(1, 33, 50)).mean() > 0.05


SIGNAL = """
import faulthandler, signal, sys
from pathlib import Path
from anomalib_softpatch.predictions.runtimes import load_runtime

faulthandler.enable()  # gives this thread a signal stack
first, second = (load_runtime(Path(sys.argv[1])) for _ in range(2))
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_is_handled_after_models_were_released(tmp_path, run_python):
    """A released OpenVINO core takes the thread's signal stack with it."""
    file = export(tmp_path, golden(), "openvino")
    assert run_python("-c", SIGNAL, file, cwd=tmp_path).stdout == "handled\n"
