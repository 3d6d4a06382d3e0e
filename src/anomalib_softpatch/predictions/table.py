# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Table of predictions: image, score, threshold, verdict, and where in the image the anomaly map is highest."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from anomalib_softpatch.files import atomic_output

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        path: Image file.
        score: Normalized image score, in [0, 1] (as it is where the model has no threshold).
        threshold: Score above which the image is anomalous; not a number where the model has none.
        verdict: ``"anomalous"``, ``"normal"``, or ``""`` where the model has no threshold.
        x: Column of the highest pixel of the anomaly map, in the pixels of the image.
        y: Its row.
    """

    path: str
    score: float
    threshold: float
    verdict: str
    x: int
    y: int

    def line(self) -> str:
        """Return the prediction as a line for the terminal."""
        name = self.path if self.path.isprintable() else repr(self.path)
        return f"{self.verdict or 'no verdict':10}{self.score:9.4f}  ({self.x}, {self.y})  {name}"


def verdict(score: float, threshold: float, label: object = None) -> str:
    """Return the verdict for a score.

    Args:
        score: Normalized image score.
        threshold: Threshold, perhaps not a number.
        label: The model's own label, which counts where there is one.
    """
    if label is not None:
        return "anomalous" if bool(np.asarray(label).any()) else "normal"
    if np.isnan(threshold):
        return ""
    return "anomalous" if score > threshold else "normal"


def peak(anomaly_map: np.ndarray, size: tuple[int, int], transform: "Transform | None" = None) -> tuple[int, int]:
    """Return the column and row of the highest value of a map, in the pixels of the image.

    Args:
        anomaly_map: Shape ``(height, width)``.
        size: Width and height of the image, in pixels.
        transform: The pre-processor's, which may show the model a part of the image only. Default: the whole image.

    Returns:
        ``(x, y)``.
    """
    from anomalib_softpatch.report.geometry import visible_region  # noqa: PLC0415  # no model needs the report

    row, column = np.unravel_index(int(np.argmax(anomaly_map)), anomaly_map.shape)
    x, y = visible_region(transform, size).patch_centre(int(row), int(column), anomaly_map.shape)
    return min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)


def write_predictions(predictions: Sequence[Prediction], path: Path) -> Path:
    """Write ``predictions.csv``; it is complete when it is there.

    Args:
        predictions: Predictions, a row each.
        path: File to write or replace.

    Returns:
        The file.
    """
    from anomalib_softpatch.report.paths import to_text  # noqa: PLC0415  # no model needs the report

    # Absolute paths, which no spreadsheet takes for a formula, in one line whatever the name
    rows = [asdict(each) | {"path": to_text(each.path)} for each in predictions]
    table = pd.DataFrame(rows, columns=list(Prediction.__dataclass_fields__))
    with atomic_output(path) as temporary:
        table.to_csv(temporary, index=False)
    return path


def summary(predictions: Sequence[Prediction]) -> str:
    """Return a sentence that counts the verdicts."""
    anomalous = sum(each.verdict == "anomalous" for each in predictions)
    if predictions and not any(each.verdict for each in predictions):
        return f"{len(predictions)} images scored; the model has no threshold to judge them by"
    return f"{anomalous} of {len(predictions)} images anomalous"
