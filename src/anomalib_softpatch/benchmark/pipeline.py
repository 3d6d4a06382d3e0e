# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib benchmark`` for benchmarks that use a class of this package; Anomalib's own code runs the others.

Every run is one of Anomalib's benchmark jobs, and results are where Anomalib puts them. The differences:

- The CSV file is written after every run. Anomalib writes it at the end, so an interrupted benchmark loses everything.
- Runs may have different options, and progress is shown.
- Nested objects, such as a pre-processor with the papers' crop, are instantiated. Anomalib passes their configuration.
- An option can refer to another: ``seed: ${seed}`` gives the noise the seed of the run, while two grids would give all
  combinations.
- The pixel AUPRO is measured too, and the seed is set before the model is made.
- A failed run is reported at once, and the command's exit status is 1. Log messages go only to the log file.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from anomalib.pipelines import Benchmark
from anomalib.pipelines.benchmark.job import BenchmarkJob
from anomalib.pipelines.components.base.pipeline import log_file
from jsonargparse import Namespace
from rich.console import Console
from typing_extensions import override

from anomalib_softpatch.benchmark.generator import NoiseBenchmarkJobGenerator
from anomalib_softpatch.benchmark.progress import log_to_file_only
from anomalib_softpatch.benchmark.results import ResultTable
from anomalib_softpatch.benchmark.runners import NoiseBenchmarkRunner, ParallelRunner, SerialRunner
from anomalib_softpatch.integration.registration import DATAMODULES, MODELS
from anomalib_softpatch.text import counted


class NoiseBenchmark(Benchmark):
    """Anomalib's benchmark, extended to classes of this package. If a run fails, the others continue."""

    @override
    def run(self, args: Namespace | None = None) -> None:
        args = self.get_parser().parse_args() if args is None else args
        config = yaml.safe_load(Path(args.config).read_text(encoding="utf-8"))
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
        console = Console(file=sys.stderr)  # the current one, because Anomalib replaces sys.stderr while a job runs
        accelerators = config["accelerator"] if isinstance(config["accelerator"], list) else [config["accelerator"]]
        runners = [make_runner(accelerator, table, console) for accelerator in accelerators]
        console.print(f"Results are written to {table.path} after every run, details to {log_file}.")
        with log_to_file_only(Path(log_file)):
            for runner in runners:
                runner.run(config["benchmark"])
        failures = sum(runner.failures for runner in runners)
        if failures:
            console.print(f"{counted(failures, 'run')} failed, see {log_file}.")
            raise SystemExit(1)


def make_runner(accelerator: str, table: ResultTable, console: Console) -> NoiseBenchmarkRunner:
    """Make a runner, which uses all GPUs if the accelerator is ``"cuda"``.

    The manifests are written to the folder of the table.

    Raises:
        ValueError: If the accelerator is neither ``"cpu"`` nor ``"cuda"``.
    """
    if accelerator not in {"cpu", "cuda"}:
        msg = f"accelerator={accelerator!r} of the benchmark configuration must be 'cpu', 'cuda' or a list of both."
        raise ValueError(msg)
    generator = NoiseBenchmarkJobGenerator(accelerator, manifests=table.path.parent)
    devices = torch.cuda.device_count() if accelerator == "cuda" else 1
    if devices > 1:
        return ParallelRunner(generator, table, console, range(devices), Path(log_file))
    return SerialRunner(generator, table, console)


def uses_own_class(config: Any) -> bool:
    """Tell whether a configuration names a class of this package, at any depth and with or without its path."""
    if isinstance(config, dict):
        return any(uses_own_class(value) for value in config.values())
    if isinstance(config, list):
        return any(uses_own_class(value) for value in config)
    return isinstance(config, str) and config.rpartition(".")[2] in (*MODELS, *DATAMODULES)
