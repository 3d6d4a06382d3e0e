# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Runners: the jobs of a benchmark one after another, or several at a time on as many devices.

Both save every result as it comes, show progress, report a failed run at once and go on with the others.
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
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from typing_extensions import override

from anomalib_softpatch.benchmark.generator import NoiseBenchmarkJobGenerator, describe
from anomalib_softpatch.benchmark.progress import RunProgress, log_to_file_only
from anomalib_softpatch.benchmark.results import ResultTable, summary

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a run has no result: in one line, and the traceback."""

    reason: str
    details: str = ""


def run_job(generator: NoiseBenchmarkJobGenerator, config: dict[str, Any], device: int | None = None) -> Row | Failure:
    """Make a job and run it, by default on a device that Lightning chooses."""
    try:
        return generator.make_job(config).run(device)
    except Exception as error:  # whatever it is, the other runs must go on
        return Failure(str(error.__cause__ or error), traceback.format_exc())


class NoiseBenchmarkRunner(ABC):
    """Has the generator make jobs, adds what they measure to the table, and shows progress on the console."""

    def __init__(self, generator: NoiseBenchmarkJobGenerator, table: ResultTable, console: Console) -> None:
        self.generator = generator
        self.table = table
        self.console = console
        self.failures = 0

    def run(self, args: dict[str, Any]) -> list[Row]:
        """Run all jobs of the part ``benchmark`` of a configuration.

        Returns:
            The results of those that have one, in the order in which they ended; how many have none is in
            :attr:`failures`.
        """
        configs = self.generator.configurations(args)
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
    def outcomes(
        self, configs: Sequence[dict[str, Any]], begin: Callable[[int], None]
    ) -> Iterator[tuple[int, Row | Failure]]:
        """Yield number and outcome of each job when it has ended; ``begin`` is called when one begins."""


class SerialRunner(NoiseBenchmarkRunner):
    """Run one job after another, here."""

    @override
    def outcomes(
        self, configs: Sequence[dict[str, Any]], begin: Callable[[int], None]
    ) -> Iterator[tuple[int, Row | Failure]]:
        for number, config in enumerate(configs):
            begin(number)
            yield number, run_job(self.generator, config)


class ParallelRunner(NoiseBenchmarkRunner):
    """Run as many jobs at a time as there are devices, each in a process of its own, which the generator is sent to.

    A process that dies costs its run and no other. After an interruption, runs that are under way are waited for.

    Args:
        devices: Index of each device; ``None`` leaves the choice to Lightning.
        log_file: File for the log messages of the processes.
    """

    def __init__(
        self,
        generator: NoiseBenchmarkJobGenerator,
        table: ResultTable,
        console: Console,
        devices: Sequence[int | None],
        log_file: Path,
    ) -> None:
        super().__init__(generator, table, console)
        self.devices = devices
        self.log_file = log_file

    @override
    def outcomes(
        self, configs: Sequence[dict[str, Any]], begin: Callable[[int], None]
    ) -> Iterator[tuple[int, Row | Failure]]:
        processes: dict[int, ProcessPoolExecutor] = {}
        free: SimpleQueue[int] = SimpleQueue()
        for place in range(len(self.devices)):
            processes[place] = self._process()
            free.put(place)

        def run(number: int) -> tuple[int, Row | Failure]:
            place = free.get()
            begin(number)
            try:
                task = processes[place].submit(run_job, self.generator, configs[number], self.devices[place])
                return number, task.result()
            except BrokenProcessPool:
                processes[place] = self._process()
                return number, Failure("its process was killed or crashed; is there enough memory for so many runs?")
            finally:
                free.put(place)

        threads = ThreadPoolExecutor(len(self.devices))
        try:
            for ended in as_completed([threads.submit(run, number) for number in range(len(configs))]):
                yield ended.result()
        finally:
            threads.shutdown(cancel_futures=True)
            for process in processes.values():
                process.shutdown()

    def _process(self) -> ProcessPoolExecutor:
        """A process that runs one job at a time. Spawned, because CUDA cannot be used in a forked one."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin_process, initargs=(self.log_file,))


def _begin_process(log_file: Path) -> None:
    """Have the log messages of this process go to the file for as long as it lives."""
    stack = ExitStack()
    stack.enter_context(log_to_file_only(log_file))
    atexit.register(stack.close)
