# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Exported files in the runtimes of this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalib_softpatch.integration.export_metadata import Metadata, read_metadata


@dataclass(frozen=True)
class Prediction:
    """What a file says of an image.

    Attributes:
        score: Image score.
        label: The file's own verdict; ``None`` where it gives none.
        anomaly_map: Shape ``(height, width)``.
    """

    score: float
    label: bool | None
    anomaly_map: np.ndarray


@dataclass(frozen=True)
class Runtime:
    """A loaded file.

    Attributes:
        name: Name and version of the runtime.
        precision: Type in which it computes.
        metadata: What the file says of itself.
        predict: Scores an image of shape ``(1, 3, height, width)`` in [0, 1].
    """

    name: str
    precision: str
    metadata: Metadata
    predict: Callable[[np.ndarray], Prediction]


def load_runtime(path: Path, exact: bool = True) -> Runtime:
    """Load an exported file.

    Args:
        path: File that ends in ``.onnx`` or ``.xml``.
        exact: Compute in float32 where the runtime would choose another type.

    Returns:
        The loaded file.

    Raises:
        ValueError: If it is another file, or its runtime is not installed.
    """
    if path.suffix == ".onnx":
        return _load_onnx(path)
    if path.suffix == ".xml":
        return _load_openvino(path, exact)
    msg = f"model={str(path)!r} must be an exported .onnx or .xml file."
    raise ValueError(msg)


def _load_onnx(path: Path) -> Runtime:
    try:
        import onnxruntime  # noqa: PLC0415  # optional
    except ImportError as error:
        msg = "ONNX files need ONNX Runtime: pip install onnxruntime"
        raise ValueError(msg) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    source = session.get_inputs()[0]
    batch_size = source.shape[0] if isinstance(source.shape[0], int) else 1

    def predict(image: np.ndarray) -> Prediction:
        images = image.repeat(batch_size, axis=0)
        return _prediction(dict(zip(names, session.run(None, {source.name: images}), strict=True)))

    return Runtime(f"ONNX Runtime {onnxruntime.__version__}", "float32", read_metadata(session), predict)


def _load_openvino(path: Path, exact: bool) -> Runtime:
    try:
        import openvino  # noqa: PLC0415  # optional
    except ImportError as error:
        msg = "OpenVINO files need OpenVINO: pip install openvino"
        raise ValueError(msg) from error
    core = openvino.Core()
    model = core.read_model(str(path))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"} if exact else {})
    first = model.input(0).partial_shape[0]
    batch_size = first.get_length() if first.is_static else 1
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    precision = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(precision, precision)

    def predict(image: np.ndarray) -> Prediction:
        outputs = compiled(image.repeat(batch_size, axis=0))
        return _prediction({output.get_any_name(): value for output, value in outputs.items()})

    version = openvino.get_version().split("-")[0]
    return Runtime(f"OpenVINO {version}", precision, read_metadata(model), predict)


def _prediction(outputs: dict[str, np.ndarray]) -> Prediction:
    """Return the prediction for the first image of a batch."""
    label = outputs.get("pred_label")
    return Prediction(
        float(outputs["pred_score"].reshape(-1)[0]),
        None if label is None else bool(label.reshape(-1)[0]),
        outputs["anomaly_map"][0].squeeze(),
    )
