# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Table of predictions: image, score, threshold, verdict, and the place where the anomaly map is highest."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.images.hashing import hash_files
from anomalib_softpatch.images.paths import from_text, to_text
from anomalib_softpatch.text import counted, shown

UNREADABLE = "unreadable"
START_OF_TIME = datetime(1970, 1, 1, tzinfo=timezone.utc)
FINGERPRINT_LENGTH = 12

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for an image. The attributes are the columns of the table."""

    path: str  # of the image
    score: float  # normalized, in [0, 1]; raw if there is no threshold; NaN if the image has no score
    threshold: float  # NaN if the model has none
    verdict: str  # "anomalous", "normal", UNREADABLE if the image has no score, or "" if there is no threshold
    x: int | None  # column of the highest pixel of the anomaly map, in the pixels of the image
    y: int | None  # row of that pixel
    reason: str = ""  # why the image has no score
    modified: str = ""  # see time_of_change
    model: str = ""  # see fingerprint

    def line(self) -> str:
        """Return the prediction as a line for the terminal."""
        if self.verdict == UNREADABLE:
            return f"{self.verdict:10}           {shown(self.path)}: {shown(self._reason_in_one_line())}"
        return f"{self.verdict or 'no verdict':10}{self.score:9.4f}  ({self.x}, {self.y})  {shown(self.path)}"

    def cells(self) -> list[object]:
        """Return the row of the table: one line of text, even if the file's name or the reason has more."""
        # The path is absolute, so that spreadsheets do not take it for a formula
        row = replace(self, path=to_text(self.path), reason=self._reason_in_one_line())
        return [
            "" if value is None or (isinstance(value, float) and math.isnan(value)) else value for value in astuple(row)
        ]

    def _reason_in_one_line(self) -> str:
        return " ".join(self.reason.encode(errors="replace").decode().split())


COLUMNS = [field.name for field in fields(Prediction)]


def csv_lines(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as the lines of a CSV file, in UTF-8."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def verdict(score: float, threshold: float, label: object = None) -> str:
    """Return the verdict for a normalized score. If the model gives a label, the label decides."""
    if math.isnan(score):  # any comparison would be false, so the image would be normal
        return UNREADABLE
    if label is not None:
        return "anomalous" if bool(np.asarray(label).any()) else "normal"
    if math.isnan(threshold):
        return ""
    return "anomalous" if score > threshold else "normal"


def peak(anomaly_map: np.ndarray, size: tuple[int, int], transform: "Transform | None" = None) -> tuple[int, int]:
    """Return the column and row of the highest value of an anomaly map, in pixels of the image.

    Args:
        anomaly_map: Anomaly map, of shape ``(height, width)``.
        size: Width and height of the image, in pixels.
        transform: Transform of the pre-processor, which may show the model only a part of the image. Default: the model
            sees the whole image.
    """
    row, column = np.unravel_index(int(np.argmax(anomaly_map)), anomaly_map.shape)
    if transform is None:
        height, width = anomaly_map.shape
        return int((column + 0.5) / width * size[0]), int((row + 0.5) / height * size[1])
    from anomalib_softpatch.report.geometry import visible_region  # noqa: PLC0415  # imports torch

    x, y = visible_region(transform, size).patch_center(int(row), int(column), anomaly_map.shape)
    return min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)


def time_of_change(path: str | Path) -> str:
    """Return when a file was last changed, in UTC, to the microsecond; an empty string if that cannot be read."""
    try:
        nanoseconds = Path(path).stat().st_mtime_ns
    except OSError:
        return ""
    return (START_OF_TIME + timedelta(microseconds=nanoseconds // 1000)).isoformat(timespec="microseconds")


def fingerprint(file: Path) -> str:
    """Return the fingerprint of a model's file: the start of the SHA-256 of its content, in hexadecimal.

    For a file that ends with ``.xml``, the hash covers both files of the OpenVINO model.
    """
    parts = (file, file.with_suffix(".bin")) if file.suffix == ".xml" else (file,)
    return hash_files(*(part for part in parts if part.is_file()))[:FINGERPRINT_LENGTH]


def write_predictions(predictions: Sequence[Prediction], path: Path) -> Path:
    """Write a table of predictions, and return its path. The file appears when it is complete."""
    with atomic_output(path) as temporary:
        temporary.write_bytes(csv_lines([COLUMNS, *(each.cells() for each in predictions)]))
    return path


def read_predictions(path: Path) -> list[Prediction]:
    """Return the last prediction of each image in a table of predictions."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    return [
        Prediction(
            path=str(from_text(row["path"])),
            score=float(row["score"] or "nan"),
            threshold=float(row["threshold"] or "nan"),
            verdict=row["verdict"],
            x=int(row["x"]) if row["x"] else None,
            y=int(row["y"]) if row["y"] else None,
            reason=row["reason"],
            modified=row["modified"],
            model=row["model"],
        )
        for row in rows.values()
    ]


def summary(verdicts: Mapping[str, int]) -> str:
    """Return a phrase that counts the verdicts, given the number of images with each."""
    unreadable = verdicts.get(UNREADABLE, 0)
    scored = sum(verdicts.values()) - unreadable
    if scored and verdicts.get("", 0) == scored:
        text = f"{counted(scored, 'image')} scored; the model has no threshold to judge them by"
    else:
        text = f"{verdicts.get('anomalous', 0)} of {counted(scored, 'image')} anomalous"
    return f"{text}, {unreadable} unreadable" if unreadable else text
