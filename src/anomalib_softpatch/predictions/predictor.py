# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A model from a checkpoint or an exported file, as a function from an image to score, label and map."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from anomalib_softpatch.predictions.runtimes import load_runtime
from anomalib_softpatch.predictions.training import TrainingFacts

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

    from anomalib_softpatch.models import SoftPatchModel
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin

NORMALIZED_THRESHOLD = 0.5  # of exported files, whose post-processor is inside


@dataclass(frozen=True)
class Predictor:
    """A model that scores images one by one.

    Attributes:
        run: Image of shape ``(1, 3, height, width)`` in [0, 1] -> score, the model's own verdict or ``None``, and
            anomaly map of shape ``(height, width)``.
        threshold: Threshold of the scores.
        transform: The pre-processor's transform; ``None`` for one that shows the model the whole image.
        largest_value: By which it was trained to read images, see
            :func:`~anomalib_softpatch.images.reading.read_image`.
        training: What is known of its training images.
    """

    run: Callable[[np.ndarray], tuple[float, bool | None, np.ndarray]]
    threshold: float
    transform: "Transform | None"
    largest_value: int
    training: TrainingFacts


def load_exported(path: Path) -> Predictor:
    """Load an exported model.

    Args:
        path: ONNX file, or OpenVINO's ``.xml`` file.

    Returns:
        The model.

    Raises:
        ValueError: If it cannot be read, or if it is another kind of model.
    """
    runtime = load_runtime(path)

    def run(image: np.ndarray) -> tuple[float, bool | None, np.ndarray]:
        prediction = runtime.predict(image)
        return prediction.score, prediction.label, prediction.anomaly_map

    metadata = runtime.metadata
    return Predictor(run, NORMALIZED_THRESHOLD, metadata.transform, metadata.largest_value, metadata.training)


def load_checkpoint(path: Path, device: str) -> Predictor:
    """Load a checkpoint.

    Args:
        path: Checkpoint of SoftPatch or SoftPatchPlus.
        device: Device, or ``auto`` for a GPU if there is one.

    Returns:
        The model.

    Raises:
        ValueError: If it cannot be read, or is another model's.
    """
    import torch  # noqa: PLC0415  # not needed for exported files

    from anomalib_softpatch.models import load_model  # noqa: PLC0415  # likewise
    from anomalib_softpatch.models.checkpoint import read_options  # noqa: PLC0415  # likewise
    from anomalib_softpatch.models.teaching import training_facts  # noqa: PLC0415  # likewise
    from anomalib_softpatch.predictions.threshold import normalized_threshold  # noqa: PLC0415  # likewise

    if read_options(path)[0] is None:
        msg = (
            f"ckpt_path={str(path)!r} is not a checkpoint of SoftPatch or SoftPatchPlus. anomalib predict can use it, "
            "with the model that it was trained with."
        )
        raise ValueError(msg)
    model = load_model(path).eval().to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    training = training_facts(cast("DenoisingMixin", model))
    cast("SoftPatchModel", model.model).record = None  # what teaching needs takes as much memory as the memory bank

    def run(image: np.ndarray) -> tuple[float, bool | None, np.ndarray]:
        with torch.inference_mode():
            output = model(torch.from_numpy(image).to(model.device))
        return float(output.pred_score[0]), None, output.anomaly_map[0].float().cpu().numpy().squeeze()

    transform = getattr(model.pre_processor, "transform", None)
    largest_value = cast("int", model.largest_value)
    return Predictor(run, normalized_threshold(model.post_processor), transform, largest_value, training)
