# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A run of a benchmark: fit one model on one dataset, and test it."""

from pathlib import Path
from typing import Any

from anomalib.pipelines.benchmark.job import BenchmarkJob

from anomalib_softpatch.benchmark.results import DATA_OPTIONS, NOISE_SHARE
from anomalib_softpatch.data.noisy import NoisyDataModule


class NoiseBenchmarkJob(BenchmarkJob):
    """Anomalib's benchmark job, which also leaves the manifest of its noise.

    Args:
        manifests: Folder for the manifest.
        **kwargs: Arguments of Anomalib's job.
    """

    def __init__(self, manifests: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.manifests = manifests

    def run(self, task_id: int | None = None) -> dict[str, Any]:
        """Fit and test the model.

        Args:
            task_id: Index of the device to use, where several are used in parallel.

        Returns:
            Options and measurements of the run by name.
        """
        row = super().run(task_id)
        if isinstance(self.datamodule, NoisyDataModule):
            name = "-".join(filter(None, ("manifest", self.datamodule.name, self.datamodule.category)))
            self.datamodule.write_manifest(self.manifests / f"{name}.csv")
            noise = {"noise_ratio": self.datamodule.noise_ratio, "overlap": self.datamodule.overlap}
            row.update({f"{DATA_OPTIONS}{key}": value for key, value in noise.items()})  # defaults too
            row[NOISE_SHARE] = self.datamodule.noise_share
        return row
