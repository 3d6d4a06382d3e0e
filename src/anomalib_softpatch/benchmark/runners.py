# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Runners: they run the jobs of a benchmark one after another, or several at a time on as many devices.

Both save each result immediately, show progress, report a failed run at once, and continue with the others.
"""

import atexit
import logging
import multiprocessing
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from rich.console import Console
from typing_extensions import override

from anomalib_softpatch.benchmark.generator import NoiseBenchmarkJobGenerator, describe
from anomalib_softpatch.benchmark.progress import RunProgress, log_to_file_only
from anomalib_softpatch.benchmark.results import ResultTable, summary

logger = logging.getLogger(__name__)

Config = dict[str, Any]  # of one run, without grids
Row = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a run has no result: the reason in one line, and the traceback."""

    reason: str
    details: str = ""


Outcome = Row | Failure


def run_job(generator: NoiseBenchmarkJobGenerator, config: Config, device: int | None = None) -> Outcome:
    """Make a job and run it, by default on a device that Lightning chooses."""
    try:
        return generator.make_job(config).run(device)
    except Exception as error:  # the other runs must continue after any error
        return Failure(str(error.__cause__ or error), traceback.format_exc())


@dataclass
class NoiseBenchmarkRunner(ABC):
    """Runs the jobs of the generator, adds their results to the table, and shows progress on the console."""

    generator: NoiseBenchmarkJobGenerator
    table: ResultTable
    console: Console
    failures: int = field(default=0, init=False)  # jobs without a result

    def run(self, args: dict[str, Any]) -> list[Row]:
        """Run all jobs of the part ``benchmark`` of a configuration, one for each combination of its grids.

        Returns:
            The results of the jobs that have one, in the order in which they ended; ``failures`` counts the others.
        """
        configs: list[Config] = list(get_iterator_from_grid_dict(args))
        names = list(describe(configs))
        rows = []
        with RunProgress(self.console, len(configs)) as progress:
            for number, outcome in self.outcomes(configs, lambda number: progress.begin(names[number])):
                if isinstance(outcome, Failure):
                    self.failures += 1
                    logger.error("Run %s failed: %s\n%s", names[number], outcome.reason, outcome.details)
                    progress.end(names[number], f"failed: {outcome.reason}")
                else:
                    rows.append(outcome)
                    self.table.add(outcome)
                    progress.end(names[number], summary(outcome))
        return rows

    @abstractmethod
    def outcomes(self, configs: Sequence[Config], begin: Callable[[int], None]) -> Iterator[tuple[int, Outcome]]:
        """Yield number and outcome of each job when it ends; ``begin`` is called when one begins."""


class SerialRunner(NoiseBenchmarkRunner):
    """Run one job after another in this process."""

    @override
    def outcomes(self, configs: Sequence[Config], begin: Callable[[int], None]) -> Iterator[tuple[int, Outcome]]:
        for number, config in enumerate(configs):
            begin(number)
            yield number, run_job(self.generator, config)


@dataclass
class ParallelRunner(NoiseBenchmarkRunner):
    """Run as many jobs at a time as there are devices, each in its own process, to which the generator is sent.

    If a process dies, only its current run is lost. After an interruption, the current runs are completed.
    """

    devices: Sequence[int | None]  # their indices; with None, Lightning chooses a device
    log_file: Path  # for the log messages of the processes

    @override
    def outcomes(self, configs: Sequence[Config], begin: Callable[[int], None]) -> Iterator[tuple[int, Outcome]]:
        processes = [self._process() for _ in self.devices]
        free: SimpleQueue[int] = SimpleQueue()
        for place in range(len(processes)):
            free.put(place)

        def run(number: int) -> tuple[int, Outcome]:
            place = free.get()
            begin(number)
            try:
                task = processes[place].submit(run_job, self.generator, configs[number], self.devices[place])
                return number, task.result()
            except BrokenProcessPool:
                processes[place] = self._process()
                return number, Failure("its process was killed or crashed; is there enough memory for parallel runs?")
            finally:
                free.put(place)

        threads = ThreadPoolExecutor(len(self.devices))
        try:
            for ended in as_completed([threads.submit(run, number) for number in range(len(configs))]):
                yield ended.result()
        finally:
            threads.shutdown(cancel_futures=True)
            for process in processes:
                process.shutdown()

    def _process(self) -> ProcessPoolExecutor:
        """Return a process that runs one job at a time. It is spawned, because CUDA does not work in forked ones."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin_process, initargs=(self.log_file,))


def _begin_process(log_file: Path) -> None:
    """Redirect the log messages of this process to the file until it ends."""
    stack = ExitStack()
    stack.enter_context(log_to_file_only(log_file))
    atexit.register(stack.close)
