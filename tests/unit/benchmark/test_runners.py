# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Runners with jobs that measure nothing, so that only the handling of jobs is tested."""

import io
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from anomalib_softpatch.benchmark.results import ResultTable
from anomalib_softpatch.benchmark.runners import NoiseBenchmarkRunner, ParallelRunner, SerialRunner


class Job:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def run(self, device: int | None = None) -> dict[str, Any]:
        number = self.config["seed"]
        logging.getLogger("anomalib").warning("run %s in process %s", number, os.getpid())
        if number == 1:
            msg = "the features are not finite"
            raise ValueError(msg)
        if number == 2 and device is not None:
            os._exit(9)  # like a process that runs out of memory
        row = {"seed": number, "device": device, "job_duration": 3.0, "image_AUROC": 0.25 * number}
        return {**row, "only in this run": "x"} if number == 3 else row


class Generator:
    """It is sent to other processes, so it must be picklable."""

    def make_job(self, config: dict[str, Any]) -> Job:
        if config["seed"] == 5:
            msg = "Error occurred while executing make_job"
            raise RuntimeError(msg) from ValueError("there is no such model")
        return Job(config)


@pytest.fixture
def make_runner(tmp_path: Path) -> Callable[..., NoiseBenchmarkRunner]:
    def make(runner_class: type[NoiseBenchmarkRunner], **options: Any) -> NoiseBenchmarkRunner:
        console = Console(file=io.StringIO(), width=200)
        return runner_class(Generator(), ResultTable(tmp_path / "results.csv"), console, **options)

    return make


@pytest.fixture
def imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork processes from one that has imported this package, if the system can, to save ten seconds per process.

    They are as independent as spawned ones, and get their jobs in the same way.
    """
    get_context = multiprocessing.get_context

    def context(method: str) -> multiprocessing.context.BaseContext:
        assert method == "spawn"  # CUDA cannot be used in a process that is forked from this one
        if "forkserver" not in multiprocessing.get_all_start_methods():
            return get_context(method)
        server = get_context("forkserver")
        server.set_forkserver_preload([ParallelRunner.__module__])
        return server

    monkeypatch.setattr(multiprocessing, "get_context", context)


def grid(*seeds: int) -> dict[str, Any]:
    return {"seed": {"grid": [*seeds]}, "model": {"class_path": "SoftPatch"}}


def shown(runner: NoiseBenchmarkRunner) -> list[str]:
    return [line for line in runner.console.file.getvalue().splitlines() if ": " in line]


def test_serial_runner_continues_after_a_failure(
    make_runner: Callable, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    runner = make_runner(SerialRunner)
    rows = runner.run(grid(0, 1, 3, 5))
    assert [row["seed"] for row in rows] == [0, 3]
    assert pd.read_csv(tmp_path / "results.csv")["seed"].tolist() == [0, 3]
    assert runner.failures == 2
    lines = "\n".join(shown(runner))
    assert "1/4 SoftPatch, seed=0: Image AUROC 0.0 %, 3 s" in lines
    assert "2/4 SoftPatch, seed=1: failed: the features are not finite" in lines
    assert "4/4 SoftPatch, seed=5: failed: there is no such model" in lines
    assert "ValueError: the features are not finite" in caplog.text


def test_serial_results_are_saved_before_the_next_run_begins(make_runner: Callable, tmp_path: Path) -> None:
    runner = make_runner(SerialRunner)
    counts = []
    original = runner.generator.make_job

    def make_job(config: dict[str, Any]) -> Job:
        path = tmp_path / "results.csv"
        counts.append(len(pd.read_csv(path)) if path.exists() else 0)
        return original(config)

    runner.generator.make_job = make_job
    runner.run(grid(0, 3, 1, 4))
    assert counts == [0, 1, 2, 2]


def test_parallel_runner(make_runner: Callable, tmp_path: Path, imported_once: None) -> None:
    """A failed run and a process that dies cost one run each, and both of two devices are used."""
    log_file = tmp_path / "pipeline.log"
    runner = make_runner(ParallelRunner, devices=[0, 1], log_file=log_file)
    counts = []
    add = runner.table.add
    runner.table.add = lambda row: (add(row), counts.append(len(pd.read_csv(tmp_path / "results.csv"))))
    rows = runner.run(grid(0, 3, 2, 1, 4, 6, 7, 8))
    assert counts == [1, 2, 3, 4, 5, 6]  # saved immediately
    assert sorted(row["seed"] for row in rows) == [0, 3, 4, 6, 7, 8]
    assert runner.failures == 2
    table = pd.read_csv(tmp_path / "results.csv")
    assert sorted(table["seed"]) == [0, 3, 4, 6, 7, 8]
    assert table["only in this run"].notna().sum() == 1
    assert set(table["device"]) == {0, 1}
    lines = shown(runner)
    assert any(line.endswith("SoftPatch, seed=1: failed: the features are not finite") for line in lines)
    assert any("SoftPatch, seed=2: failed: its process was killed or crashed" in line for line in lines)
    for number in range(1, 9):
        assert any(line.startswith(f"{number}/8 ") for line in lines)
    text = log_file.read_text()
    processes = {line.rpartition(" ")[2] for line in text.splitlines() if "in process" in line}
    assert len(processes) >= 2  # the replacement of the one that died may start too late for a run
    assert str(os.getpid()) not in processes
