# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A model from a checkpoint or an exported file, as a function from an image to score, label and map."""

from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

# Image of shape (1, 3, height, width) in [0, 1] -> score, label or None, map of shape (height, width)
Predictor = Callable[[np.ndarray], tuple[float, object, np.ndarray]]
NORMALIZED_THRESHOLD = 0.5  # of exported files, whose post-processor is inside
NEEDED_OUTPUTS = ("pred_score", "anomaly_map")
RUNTIMES = {".onnx": ("onnxruntime", "ONNX Runtime"), ".xml": ("openvino", "OpenVINO")}  # module and name by suffix


def check_exported(file: Path) -> None:
    """Refuse an exported model that cannot be run here, without the seconds that loading it takes.

    Args:
        file: Exported model.

    Raises:
        ValueError: If it is of no known kind, or if what runs it is not installed.
    """
    if file.suffix not in RUNTIMES:
        msg = f"model={str(file)!r} must be an exported .onnx or .xml file."
        raise ValueError(msg)
    module, name = RUNTIMES[file.suffix]
    if find_spec(module) is None:
        msg = f"{file.suffix} files need {name}: pip install {module}"
        raise ValueError(msg)


def load_exported(path: Path) -> tuple[Predictor, float]:
    """Load an exported model.

    Args:
        path: ONNX file, or OpenVINO's ``.xml`` file.

    Returns:
        The model and the threshold of its scores.

    Raises:
        ValueError: If it cannot be read, or if it is another kind of model.
    """
    try:
        infer, outputs = (_onnx if path.suffix == ".onnx" else _openvino)(path)
    except Exception as error:  # the runtimes have exceptions of their own for files that they cannot read
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        msg = f"model={str(path)!r} cannot be read, it may be incomplete: {reason}"
        raise ValueError(msg) from error
    missing = [name for name in NEEDED_OUTPUTS if name not in outputs]
    if missing:
        msg = (
            f"model={str(path)!r} is not an exported anomaly detector: it has the outputs {', '.join(outputs)}, and "
            f"not {', '.join(missing)}."
        )
        raise ValueError(msg)

    def run(image: np.ndarray) -> tuple[float, object, np.ndarray]:
        values = infer(image)
        return float(values["pred_score"].reshape(-1)[0]), values.get("pred_label"), values["anomaly_map"].squeeze()

    return run, NORMALIZED_THRESHOLD


def load_checkpoint(path: Path, device: str) -> tuple[Predictor, float]:
    """Load a checkpoint.

    Args:
        path: Checkpoint of SoftPatch or SoftPatchPlus.
        device: Device, or ``auto`` for a GPU if there is one.

    Returns:
        The model and the threshold of its scores.

    Raises:
        ValueError: If it cannot be read, or is another model's.
    """
    import torch  # noqa: PLC0415  # not needed for exported files

    from anomalib_softpatch.models import load_model  # noqa: PLC0415  # likewise
    from anomalib_softpatch.models.checkpoint import read_options  # noqa: PLC0415  # likewise
    from anomalib_softpatch.predictions.threshold import normalized_threshold  # noqa: PLC0415  # likewise

    if read_options(path)[0] is None:
        msg = (
            f"ckpt_path={str(path)!r} is not a checkpoint of SoftPatch or SoftPatchPlus. anomalib predict can use it, "
            "with the model that it was trained with."
        )
        raise ValueError(msg)
    model = load_model(path).eval().to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)

    def run(image: np.ndarray) -> tuple[float, object, np.ndarray]:
        with torch.inference_mode():
            output = model(torch.from_numpy(image).to(model.device))
        return float(output.pred_score[0]), None, output.anomaly_map[0].float().cpu().numpy().squeeze()

    return run, normalized_threshold(model.post_processor)


def _onnx(path: Path) -> tuple[Callable[[np.ndarray], dict[str, Any]], Collection[str]]:
    import onnxruntime  # noqa: PLC0415  # optional

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    name = session.get_inputs()[0].name
    return lambda image: dict(zip(names, session.run(None, {name: image}), strict=True)), names


def _openvino(path: Path) -> tuple[Callable[[np.ndarray], dict[str, Any]], Collection[str]]:
    import openvino  # noqa: PLC0415  # optional

    ElementTree.parse(path)  # OpenVINO takes a file that is no XML for one of TensorFlow, and says so in several lines
    path.with_suffix(".bin").stat()
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.get_any_name() for output in compiled.outputs if output.get_names()]
    return lambda image: {output.get_any_name(): value for output, value in compiled(image).items()}, names
