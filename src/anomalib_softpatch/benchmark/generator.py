# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Jobs from the configuration of a benchmark, and short names for runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from anomalib.data import AnomalibDataModule
from anomalib.metrics import AUPRO, Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.pipelines.benchmark.job import BenchmarkJob
from anomalib.utils.config import flatten_dict
from anomalib.utils.logging import hide_output
from lightning import seed_everything
from omegaconf import OmegaConf
from typing_extensions import override

from anomalib_softpatch.benchmark.results import DATA_OPTIONS, MODEL, NOISE_SHARE
from anomalib_softpatch.data.noisy import NoisyDataModule
from anomalib_softpatch.instantiate import instantiate


class NoiseBenchmarkJob(BenchmarkJob):
    """Anomalib's benchmark job, which also writes the manifest of its noise to a folder."""

    def __init__(self, manifests: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.manifests = manifests

    @override
    def run(self, task_id: int | None = None) -> dict[str, Any]:
        row = super().run(task_id)
        if isinstance(self.datamodule, NoisyDataModule):
            name = "-".join(filter(None, ("manifest", self.datamodule.name, self.datamodule.category)))
            self.datamodule.write_manifest(self.manifests / f"{name}.csv")
            noise = {"noise_ratio": self.datamodule.noise_ratio, "overlap": self.datamodule.overlap}
            row.update({f"{DATA_OPTIONS}{key}": value for key, value in noise.items()})  # also if they are defaults
            row[NOISE_SHARE] = self.datamodule.noise_share
        return row


@dataclass(frozen=True)
class NoiseBenchmarkJobGenerator:
    """Make the jobs of a benchmark on ``"cpu"`` or ``"cuda"``, which write manifests of their noise to a folder."""

    accelerator: str
    manifests: Path

    @hide_output
    def make_job(self, config: dict[str, Any]) -> NoiseBenchmarkJob:
        """Make the job of one run, with a model that also measures the pixel AUPRO.

        Args:
            config: Configuration without grids, with ``seed``, ``model`` and ``data``; OmegaConf's interpolations, such
                as ``${seed}`` and ``${oc.env:NAME,default}``, are resolved.

        Raises:
            LoggerRedirectError: If the job cannot be made; the reason is the error's cause.
        """
        for part in ("seed", "model", "data"):
            if part not in config:
                msg = f"The part 'benchmark' of the configuration has no {part!r}."
                raise ValueError(msg)
        config = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(config), resolve=True))
        seed_everything(config["seed"])
        model = instantiate(AnomalibModule, config["model"], argument="model")
        if isinstance(model.evaluator, Evaluator) and not any(
            metric.name == "pixel_AUPRO" for metric in model.evaluator.test_metrics
        ):
            aupro = AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False)
            model.evaluator.test_metrics.append(aupro)
        return NoiseBenchmarkJob(
            manifests=self.manifests,
            accelerator=self.accelerator,
            model=model,
            datamodule=instantiate(AnomalibDataModule, config["data"], argument="data"),
            seed=config["seed"],
            flat_cfg=flatten_dict(config),
        )


def describe(configs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Name each run by its model and by the values that differ between runs of the model.

    Yields:
        A short name for each configuration, for example ``Patchcore, noise_ratio=0.1, seed=2``.
    """
    runs = [flatten_dict(config) for config in configs]
    models = [str(run.get(MODEL, "?")).rpartition(".")[2] for run in runs]
    for run, model in zip(runs, models, strict=True):
        others = [other for other, other_model in zip(runs, models, strict=True) if other_model == model]
        varied = [key for key, value in run.items() if any(other.get(key) != value for other in others)]
        yield ", ".join([model, *(f"{key.rpartition('.')[2]}={run[key]}" for key in varied)])
