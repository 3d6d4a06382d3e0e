# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib benchmark`` for comparisons that use a class of this package.

:func:`register` makes the stock command use it. A benchmark that names no class of ours runs Anomalib's own code as
before. What it changes, and why Anomalib 2.7 could not be left as it is:

- The CSV file is written after every run. Anomalib writes it at the end, so an interrupted benchmark loses everything.
- Runs may have different options. Anomalib's table needs the same ones in every run.
- Progress is shown. Anomalib counts the runs without saying of how many, which, and with what result.
- Nested objects, such as a pre-processor with the papers' crop, are made. Anomalib hands their configuration on.
- An option can be tied to another: ``seed: ${seed}`` gives the noise the seed of the run, where two grids would cross.
- The pixel AUPRO is measured too, for every model. Anomalib's models have no other way of taking a metric by name.
- The seed is set before the model is made, so that an untrained backbone is the same one again.
- A failed run is reported at once, and the command's exit status is 1. Log messages go to the log file only.

The measurement is Anomalib's: every run is one of its benchmark jobs. Results are where Anomalib puts them,
``runs/benchmark/<time>/results.csv``, with the manifests of the injected images beside them.
"""

import logging
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib.cli.pipelines import PIPELINE_REGISTRY
from anomalib.data import AnomalibDataModule
from anomalib.metrics import AUPRO
from anomalib.models import AnomalibModule
from anomalib.pipelines import Benchmark
from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator
from anomalib.pipelines.benchmark.job import BenchmarkJob
from anomalib.pipelines.components.base.pipeline import log_file
from anomalib.pipelines.components.runners import ParallelRunner
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from anomalib.utils.config import flatten_dict
from anomalib.utils.logging import hide_output
from jsonargparse import Namespace
from lightning import seed_everything
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

import anomalib_softpatch
from anomalib_softpatch.data.noisy import NoisyDataModule
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.instantiate import instantiate

logger = logging.getLogger(__name__)


def register() -> None:
    """Make the command ``anomalib benchmark`` use :class:`ComparisonBenchmark`."""
    if PIPELINE_REGISTRY is not None:
        PIPELINE_REGISTRY["benchmark"] = ComparisonBenchmark


class ComparisonBenchmark(Benchmark):
    """Benchmarking pipeline for evaluating anomaly detection models."""

    def run(self, args: Namespace | None = None) -> None:
        """Run the benchmark of a configuration file.

        Args:
            args: Parsed command line, with the file's path as ``config``.

        Raises:
            ValueError: If the configuration lacks a part.
            SystemExit: If a run failed; the other runs are finished first.
        """
        config = self._get_args(args)
        if not uses_own_class(config):
            super().run(args)
            return
        for part in ("accelerator", "benchmark"):
            if part not in config:
                msg = f"The benchmark configuration has no {part!r}."
                raise ValueError(msg)
        table = ResultTable(
            Path("runs") / BenchmarkJob.name / datetime.now().strftime("%Y-%m-%d-%H_%M_%S") / "results.csv"
        )
        console = Console(file=sys.stderr)  # fixed, because Anomalib replaces sys.stderr while a job runs
        console.print(f"Results are written to {table.path} after every run, details to {log_file}.")
        failures = 0
        with log_to_file_only(Path(log_file)):
            for stock_runner in self._setup_runners(config):
                generator = ComparisonJobGenerator(stock_runner.generator.accelerator, manifests=table.path.parent)
                if isinstance(stock_runner, ParallelRunner):
                    runner = SavingParallelRunner(generator, stock_runner.n_jobs, table)
                    runner.run(config["benchmark"])
                else:
                    failures += run_one_by_one(generator, config["benchmark"], table, console)
        if failures:
            console.print(f"{failures} runs failed, see {log_file}.")
            raise SystemExit(1)


class ResultTable:
    """Table of the finished runs, in a CSV file that is complete after every run.

    Args:
        path: CSV file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add runs to the table and write the file.

        Args:
            rows: Options and measurements of each run by name. They need not have the same names.
        """
        self.rows.extend(rows)
        with atomic_output(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)


class ComparisonJob(BenchmarkJob):
    """A benchmark job that leaves the manifest of its noise.

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
            row.update({f"data.init_args.{key}": value for key, value in noise.items()})  # defaults too
        return row

    @staticmethod
    def collect(results: list[dict[str, Any]]) -> pd.DataFrame:
        """Make a table of several runs.

        Args:
            results: Options and measurements of each run by name.

        Returns:
            One row per run.
        """
        return pd.DataFrame(results)

    @staticmethod
    def save(result: pd.DataFrame) -> None:
        """Nothing to do: the runs have been saved one by one.

        Args:
            result: Table of the runs.
        """


class ComparisonJobGenerator(BenchmarkJobGenerator):
    """Make the jobs of a benchmark.

    Args:
        accelerator: ``"cpu"`` or ``"cuda"``.
        manifests: Folder for the manifests of the injected images.
    """

    def __init__(self, accelerator: str, manifests: Path) -> None:
        super().__init__(accelerator)
        self.manifests = manifests

    @property
    def job_class(self) -> type[ComparisonJob]:
        """Class of the jobs."""
        return ComparisonJob

    def generate_jobs(self, args: dict, previous_stage_result: Any = None) -> Generator[ComparisonJob, None, None]:
        """Make the jobs one after another.

        Args:
            args: The part ``benchmark`` of the configuration.
            previous_stage_result: Not used.

        Yields:
            A job for every combination of the values of the grids.
        """
        del previous_stage_result
        for config in get_iterator_from_grid_dict(args):
            yield self.make_job(config)

    @hide_output
    def make_job(self, config: dict[str, Any]) -> ComparisonJob:
        """Make the job of one combination.

        Args:
            config: Configuration without grids, with ``seed``, ``model`` and ``data``; OmegaConf's interpolations, such
                as ``${seed}`` and ``${oc.env:NAME,default}``, are resolved.

        Returns:
            The job, with a model that also measures the pixel AUPRO.

        Raises:
            LoggerRedirectError: If it cannot be made; the reason is the error's cause.
        """
        for part in ("seed", "model", "data"):
            if part not in config:
                msg = f"The part 'benchmark' of the configuration has no {part!r}."
                raise ValueError(msg)
        config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        seed_everything(config["seed"])
        model = instantiate(AnomalibModule, config["model"], argument="model")
        if model.evaluator is not None and not any(
            metric.name == "pixel_AUPRO" for metric in model.evaluator.test_metrics
        ):
            aupro = AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False)
            model.evaluator.test_metrics.append(aupro)
        return ComparisonJob(
            manifests=self.manifests,
            accelerator=self.accelerator,
            model=model,
            datamodule=instantiate(AnomalibDataModule, config["data"], argument="data"),
            seed=config["seed"],
            flat_cfg=flatten_dict(config),
        )


def run_one_by_one(generator: ComparisonJobGenerator, args: dict, table: ResultTable, console: Console) -> int:
    """Run the jobs one after another, saving each result and showing progress.

    Args:
        generator: Maker of the jobs.
        args: The part ``benchmark`` of the configuration.
        table: Table that the results are added to.
        console: Where progress is shown.

    Returns:
        Number of runs that failed.
    """
    configs = list(get_iterator_from_grid_dict(args))
    failures = 0
    name_column = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), name_column)
    with Progress(*columns, console=console, expand=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("", total=len(configs))
        for number, (config, name) in enumerate(zip(configs, describe(configs), strict=True), start=1):
            progress.update(task, description=escape(name))
            try:
                row = generator.make_job(config).run()
            except Exception as error:
                failures += 1
                logger.exception("Run %s failed.", name)
                outcome = f"failed: {error.__cause__ or error}"
            else:
                table.add([row])
                outcome = summary(row)
            console.print(f"{number}/{len(configs)} {name}: {outcome}", markup=False, highlight=False, soft_wrap=True)
            progress.advance(task)
    return failures


class SavingParallelRunner(ParallelRunner):
    """Anomalib's runner for several devices, saving each result.

    Args:
        generator: Maker of the jobs.
        n_jobs: Number of devices.
        table: Table that the results are added to.
    """

    def __init__(self, generator: ComparisonJobGenerator, n_jobs: int, table: ResultTable) -> None:
        super().__init__(generator, n_jobs)
        self.table = table

    def _await_cleanup_processes(self, blocking: bool = False) -> None:
        saved = len(self.results)
        super()._await_cleanup_processes(blocking)
        if len(self.results) > saved:
            self.table.add(self.results[saved:])


@contextmanager
def log_to_file_only(path: Path) -> Iterator[None]:
    """Send all log messages and warnings to a file. On the terminal they would tear the progress bar.

    Anomalib's ``redirect_logs`` leaves the handlers of the root logger, writes a message once per parent logger, and
    cannot be undone.

    Args:
        path: File to append to; its folder is made if need be.

    Yields:
        Nothing. Afterwards, logging is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    root, *others = loggers = [
        logging.getLogger(),
        *(logging.getLogger(name) for name in logging.root.manager.loggerDict),
    ]
    before = [(each, each.handlers[:], each.propagate) for each in loggers]
    with closing(logging.FileHandler(path, encoding="utf-8")) as handler:
        handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
        root.handlers = [handler]
        for other in others:
            other.handlers = []
            other.propagate = True
        logging.captureWarnings(capture=True)
        try:
            yield
        finally:
            logging.captureWarnings(capture=False)
            for each, handlers, propagate in before:
                each.handlers, each.propagate = handlers, propagate


def uses_own_class(config: Any) -> bool:
    """Whether a configuration names a class of this package.

    Args:
        config: Configuration of mappings, lists and values.

    Returns:
        Whether one of the values, at any depth, is the bare name or the dotted path of such a class.
    """
    if isinstance(config, dict):
        return any(uses_own_class(value) for value in config.values())
    if isinstance(config, list):
        return any(uses_own_class(value) for value in config)
    return isinstance(config, str) and config.rpartition(".")[2] in anomalib_softpatch.__all__


def describe(configs: list[dict[str, Any]]) -> Iterator[str]:
    """Name each run by its model and by the values that are not the same in all runs of the model.

    Args:
        configs: Configurations without grids.

    Yields:
        A short name for each, for example ``Patchcore, noise_ratio=0.1, seed=2``.
    """
    runs = [flatten_dict(config) for config in configs]
    models = [str(run.get("model.class_path", "?")).rpartition(".")[2] for run in runs]
    for run, model in zip(runs, models, strict=True):
        others = [other for other, other_model in zip(runs, models, strict=True) if other_model == model]
        varied = [key for key, value in run.items() if any(other.get(key) != value for other in others)]
        yield ", ".join([model, *(f"{key.rpartition('.')[2]}={run[key]}" for key in varied)])


def summary(row: dict[str, Any]) -> str:
    """Say in short what a run has measured.

    Args:
        row: Options and measurements of a run by name.

    Returns:
        Its AUROCs and its duration.
    """
    names = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC"}
    values = [f"{name} {100 * row[key]:.1f} %" for key, name in names.items() if row.get(key) is not None]
    return ", ".join([*values, f"{row['job_duration']:.0f} s"])
