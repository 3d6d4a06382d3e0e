# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from anomalib_softpatch.benchmark.generator import describe
from anomalib_softpatch.benchmark.pipeline import make_runner, uses_own_class
from anomalib_softpatch.benchmark.results import MEASURES, ResultTable, summary
from anomalib_softpatch.benchmark.runners import ParallelRunner, SerialRunner


@pytest.mark.parametrize(
    ("accelerator", "gpus", "runner_class", "devices"),
    [("cpu", 4, SerialRunner, None), ("cuda", 1, SerialRunner, None), ("cuda", 3, ParallelRunner, [0, 1, 2])],
)
def test_several_gpus_are_used_together(
    accelerator: str, gpus: int, runner_class: type, devices: list | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    runner = make_runner(accelerator, ResultTable(Path("results.csv")), Console(file=io.StringIO()))
    assert type(runner) is runner_class
    assert devices is None or list(runner.devices) == devices


def test_an_unknown_accelerator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accelerator='tpu' .* must be 'cpu', 'cuda'"):
        make_runner("tpu", ResultTable(Path("results.csv")), Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ({"model": {"class_path": "Padim"}, "data": {"class_path": "anomalib.data.MVTecAD"}}, False),
        ({"model": {"grid": [{"class_path": "Padim"}, {"class_path": "anomalib_softpatch.SoftPatch"}]}}, True),
        ({"model": {"class_path": {"grid": ["Padim", "SoftPatchPlus"]}}}, True),
        ({"data": {"class_path": "NoisyDataModule"}}, True),
        ({"seed": 3, "data": {"init_args": {"name": "load_memory_bank"}}}, False),
    ],
)
def test_benchmarks_with_a_class_of_this_package(config: dict, own: bool) -> None:
    assert uses_own_class(config) is own


def test_runs_are_named_by_what_differs() -> None:
    data = {"init_args": {"category": "nut"}}
    configs = [
        {"seed": seed, "model": {"class_path": name}, "data": data}
        for name in ("anomalib.models.Padim", "SoftPatch")
        for seed in (0, 1)
    ]
    assert list(describe(configs)) == ["Padim, seed=0", "Padim, seed=1", "SoftPatch, seed=0", "SoftPatch, seed=1"]
    assert list(describe(configs[:1])) == ["Padim"]
    options = {"class_path": "SoftPatch", "init_args": {"threshold": 0.1}}
    assert list(describe([configs[0], {**configs[0], "model": options}])) == ["Padim", "SoftPatch"]


def test_summary_of_a_run() -> None:
    row = {"image_AUROC": 0.981, "pixel_AUROC": None, "job_duration": 12.3, "fit_duration": 8.0}
    assert summary(row) == "Image AUROC 98.1 %, 12 s"
    assert MEASURES["fit_duration"].heading == "Fit [s]"
