# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint as a function from an image to its score and anomaly map. This module imports torch."""

from pathlib import Path
from typing import cast

import numpy as np
import torch

from anomalib_softpatch.models import SoftPatchModel, load_model
from anomalib_softpatch.models.checkpoint import read_options
from anomalib_softpatch.models.denoising_mixin import DenoisingMixin
from anomalib_softpatch.models.teaching import training_facts
from anomalib_softpatch.predictions.predictor import Predictor
from anomalib_softpatch.predictions.runtimes import Output
from anomalib_softpatch.predictions.threshold import normalized_threshold


def load_checkpoint(path: Path, device: str) -> Predictor:
    """Load a checkpoint of SoftPatch or SoftPatchPlus to a device, with ``auto`` to a GPU if there is one.

    Raises:
        ValueError: If it cannot be read, or if it is a checkpoint of another model.
    """
    if read_options(path)[0] is None:
        reason = "is not a checkpoint of SoftPatch or SoftPatchPlus. anomalib predict can use it, with its own model."
        msg = f"ckpt_path={str(path)!r} {reason}"
        raise ValueError(msg)
    model = load_model(path).eval().to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    training = training_facts(cast("DenoisingMixin", model))
    cast("SoftPatchModel", model.model).record = None  # needed for teaching only, and as large as the memory bank

    def run(image: np.ndarray) -> Output:
        with torch.inference_mode():
            output = model(torch.from_numpy(image).to(model.device))
        return Output(float(output.pred_score[0]), None, output.anomaly_map[0].float().cpu().numpy().squeeze())

    transform = getattr(model.pre_processor, "transform", None)
    largest_value = cast("int", model.largest_value)
    return Predictor(run, normalized_threshold(model.post_processor), transform, largest_value, training)
