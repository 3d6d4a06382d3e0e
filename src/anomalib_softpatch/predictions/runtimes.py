# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Exported files in ONNX Runtime and OpenVINO, as installed on this machine."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from anomalib_softpatch.predictions.metadata import Metadata, read_metadata

if TYPE_CHECKING:
    import openvino

NEEDED_OUTPUTS = ("pred_score", "anomaly_map")
RUNTIMES = {".onnx": ("onnxruntime", "ONNX Runtime"), ".xml": ("openvino", "OpenVINO")}  # module and name by suffix


@dataclass(frozen=True)
class Output:
    """Output of a model for an image."""

    score: float
    label: bool | None  # the model's own verdict: whether the image is anomalous; None if it gives none
    anomaly_map: np.ndarray  # shape (height, width)


@dataclass(frozen=True)
class Runtime:
    """A loaded file."""

    name: str  # name and version of the runtime
    precision: str  # data type of the computation
    metadata: Metadata
    predict: Callable[[np.ndarray], Output]  # scores an image of shape (1, 3, height, width) in [0, 1]


def check_exported(file: Path) -> None:
    """Refuse an exported model that cannot be run here. It is not loaded, since that takes seconds.

    Raises:
        ValueError: If it is of an unknown kind, or if its runtime is not installed.
    """
    if file.suffix not in RUNTIMES:
        msg = f"model={str(file)!r} must be an exported .onnx or .xml file."
        raise ValueError(msg)
    module, name = RUNTIMES[file.suffix]
    if find_spec(module) is None:
        msg = f"{file.suffix} files need {name}: pip install {module}"
        raise ValueError(msg)


def load_runtime(file: Path, exact: bool = True) -> Runtime:
    """Load an ``.onnx`` or ``.xml`` file, to run in float32 or, if not ``exact``, in the type that the runtime chooses.

    Raises:
        ValueError: If it cannot be read, if it is another kind of model, or if its runtime is not installed.
    """
    check_exported(file)
    try:
        runtime, outputs = _load_onnx(file) if file.suffix == ".onnx" else _load_openvino(file, exact)
    except Exception as error:  # the runtimes raise their own exceptions for files that they cannot read
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        msg = f"model={str(file)!r} cannot be read, it may be incomplete: {reason}"
        raise ValueError(msg) from error
    missing = [name for name in NEEDED_OUTPUTS if name not in outputs]
    if missing:
        msg = (
            f"model={str(file)!r} is not an exported anomaly detector: it has the outputs {', '.join(outputs)}, and "
            f"not {', '.join(missing)}."
        )
        raise ValueError(msg)
    return runtime


@cache
def openvino_core() -> "openvino.Core":
    """Return the one OpenVINO core of this process.

    A core with the CPU plugin gives the calling thread a new signal stack. If two cores are released in the order in
    which they were made, the thread keeps a signal stack that is no longer mapped. The next signal that Python handles,
    such as Ctrl-C, then ends the process with a segmentation fault and no message (seen with OpenVINO 2026.4).
    """
    import openvino  # noqa: PLC0415  # optional

    return openvino.Core()


def _load_onnx(file: Path) -> tuple[Runtime, list[str]]:
    """Load an ONNX file, and return the names of its outputs, too."""
    # Telemetry would report what this machine runs, and is known to crash (microsoft/onnxruntime, issue 32173)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # noqa: PLC0415  # optional

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    source = session.get_inputs()[0]
    batch_size = source.shape[0] if isinstance(source.shape[0], int) else 1

    def predict(image: np.ndarray) -> Output:
        images = image.repeat(batch_size, axis=0)
        return _output(dict(zip(names, session.run(None, {source.name: images}), strict=True)))

    name = f"ONNX Runtime {onnxruntime.__version__}"
    return Runtime(name, "float32", read_metadata(session), predict), names


def _load_openvino(file: Path, exact: bool) -> tuple[Runtime, list[str]]:
    """Load an OpenVINO file, and return the names of its outputs, too."""
    import openvino  # noqa: PLC0415  # optional

    # OpenVINO mistakes a file that is not XML for a TensorFlow model, and its message has several lines
    ElementTree.parse(file)
    file.with_suffix(".bin").stat()
    core = openvino_core()
    model = core.read_model(str(file))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"} if exact else {})
    names = [output.get_any_name() for output in compiled.outputs if output.get_names()]
    first = model.input(0).partial_shape[0]
    batch_size = first.get_length() if first.is_static else 1
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    precision = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(precision, precision)

    def predict(image: np.ndarray) -> Output:
        outputs = compiled(image.repeat(batch_size, axis=0))
        return _output({output.get_any_name(): value for output, value in outputs.items()})

    name = f"OpenVINO {openvino.get_version().split('-')[0]}"
    return Runtime(name, precision, read_metadata(model), predict), names


def _output(outputs: dict[str, np.ndarray]) -> Output:
    """Return the output for the first image of a batch."""
    label = outputs.get("pred_label")
    return Output(
        float(outputs["pred_score"].reshape(-1)[0]),
        None if label is None else bool(label.reshape(-1)[0]),
        outputs["anomaly_map"][0].squeeze(),
    )
