# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Measures of a benchmark, and the CSV file that it writes, with one row per run.

Columns: those of :data:`MEASURES`, ``job_duration``, ``accelerator``, ``noise_share`` (injected images among all
training images; the ratio counts them for each normal one), and one for every option of the configuration (``seed``,
``model.class_path``, ``data.init_args.noise_ratio`` ...).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
DATA_PARTS = "data."  # also options of a wrapped datamodule
DATA_OPTIONS = "data.init_args."


@dataclass(frozen=True)
class Measure:
    """A column with numbers that models are compared by."""

    name: str
    unit: str  # for display
    factor: float  # from the unit of the file (shares in [0, 1], seconds) to the unit for display

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
CURVES = ("image_AUROC", "pixel_AUROC")  # drawn against the noise ratio, and shown when a run has finished
REQUIRED = (MODEL, DATA, SEED, "image_AUROC")  # columns that every benchmark's file has


@dataclass
class ResultTable:
    """Table of the finished runs in a CSV file, which is complete after every run."""

    path: Path
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the options and measurements of a run by name, and write the file. The names may differ between runs."""
        self.rows.append(row)
        with atomic_output(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)


def summary(row: Mapping[str, Any]) -> str:
    """Summarize the results of a run, for example ``Image AUROC 98.1 %, 12 s``."""
    values = [
        f"{measure.name} {measure.factor * row[column]:.1f} {measure.unit}"
        for column, measure in MEASURES.items()
        if column in CURVES and row.get(column) is not None
    ]
    return ", ".join([*values, f"{row[JOB_DURATION]:.0f} s"])
