# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What a benchmark measures, and the CSV file that it leaves: one row per run.

Columns: those of :data:`MEASURES`, ``job_duration``, ``accelerator``, ``noise_share`` (injected images among all
training images; the ratio counts them for each normal one), and one for every option of the configuration (``seed``,
``model.class_path``, ``data.init_args.noise_ratio`` ...).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_softpatch.files import atomic_output

MODEL = "model.class_path"
DATA = "data.class_path"
SEED = "seed"
ACCELERATOR = "accelerator"
JOB_DURATION = "job_duration"  # seconds
NOISE_SHARE = "noise_share"
MODEL_OPTIONS = "model.init_args."
DATA_PARTS = "data."  # of a wrapped datamodule too
DATA_OPTIONS = "data.init_args."


@dataclass(frozen=True)
class Measure:
    """A column with numbers to compare models by."""

    name: str
    unit: str  # to show it in
    factor: float  # to that unit from the file's: shares in [0, 1], durations in seconds

    @property
    def heading(self) -> str:
        """Name and unit, for tables and axes."""
        return f"{self.name} [{self.unit}]"


MEASURES = {
    "image_AUROC": Measure("Image AUROC", "%", 100),
    "pixel_AUROC": Measure("Pixel AUROC", "%", 100),
    "pixel_AUPRO": Measure("Pixel AUPRO", "%", 100),
    "image_F1Score": Measure("Image F1", "%", 100),
    "pixel_F1Score": Measure("Pixel F1", "%", 100),
    "fit_duration": Measure("Fit", "s", 1),
    "test_duration": Measure("Test", "s", 1),
}
CURVES = ("image_AUROC", "pixel_AUROC")  # drawn against the noise ratio, and said of a run when it has finished
REQUIRED = (MODEL, DATA, SEED, "image_AUROC")  # without which a file is none of a benchmark


class ResultTable:
    """Table of the finished runs, in a CSV file that is complete after every run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the options and measurements of a run by name, and write the file. Runs need not have the same names."""
        self.rows.append(row)
        with atomic_output(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)


def summary(row: Mapping[str, Any]) -> str:
    """Say in short what a run has measured, for example ``Image AUROC 98.1 %, 12 s``."""
    values = [
        f"{measure.name} {measure.factor * row[column]:.1f} {measure.unit}"
        for column, measure in MEASURES.items()
        if column in CURVES and row.get(column) is not None
    ]
    return ", ".join([*values, f"{row[JOB_DURATION]:.0f} s"])
