# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A model as a function from an image to its score, label and anomaly map, loaded from an exported file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomalib_softpatch.predictions.runtimes import Output, load_runtime
from anomalib_softpatch.predictions.training import TrainingFacts

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

NORMALIZED_THRESHOLD = 0.5  # exported files include the post-processor, which normalizes


@dataclass(frozen=True)
class Predictor:
    """A model that scores images one by one."""

    run: Callable[[np.ndarray], Output]  # scores an image of shape (1, 3, height, width) in [0, 1]
    threshold: float  # of the scores; NaN if there is none
    transform: "Transform | None"  # of the pre-processor; None if it shows the model the whole image
    largest_value: int  # for reading images as in training, see read_image
    training: TrainingFacts


def load_exported(path: Path) -> Predictor:
    """Load an exported model: an ONNX file, or OpenVINO's ``.xml`` file.

    Raises:
        ValueError: If it cannot be read, or if it is another kind of model.
    """
    runtime = load_runtime(path)
    facts = runtime.metadata
    return Predictor(runtime.predict, NORMALIZED_THRESHOLD, facts.transform, facts.largest_value, facts.training)
