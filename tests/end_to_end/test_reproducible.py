# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The same command gives exactly the same model."""

import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.cli.cli import main


def numbers(data: Any) -> Any:
    """Return nested data with strings replaced by hashes, since torch does not compare strings."""
    if isinstance(data, dict):
        return {name: numbers(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [numbers(value) for value in data]
    return zlib.crc32(data.encode()) if isinstance(data, str) else data


def run_here(*arguments: str, cwd: Path) -> None:
    """Run the stock command in this process, which has another hash seed than those that others are forked from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["anomalib", *arguments])
        main()


def test_training_twice_gives_equal_banks(mvtec_root: Path, tmp_path: Path, run_anomalib: Callable) -> None:
    """Two processes with different hash seeds, an untrained backbone and shuffled images give equal bits."""
    states = []
    for name, run in (("first", run_here), ("second", run_anomalib)):
        run(
            *("train", "--model=SoftPatch", "--model.backbone=test_resnet", "--model.layers=[layer2]"),
            *("--model.pre_trained=false", "--model.noise_report=false", "--data=MVTecAD", f"--data.root={mvtec_root}"),
            *("--data.category=bottle", "--data.num_workers=0", f"--default_root_dir={tmp_path / name}"),
            cwd=tmp_path,
        )
        (checkpoint,) = (tmp_path / name).rglob("*.ckpt")
        states.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    first, second = states
    assert first.keys() == second.keys()
    assert len(first["model.memory_bank"]) > 100
    extra = "model._extra_state"
    for name in first.keys() - {extra}:
        assert torch.equal(first[name], second[name]), name
    # This includes the record for teaching
    torch.testing.assert_close(numbers(first[extra]), numbers(second[extra]), rtol=0, atol=0)
