# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The same command gives the same model."""

from collections.abc import Callable
from pathlib import Path

import torch

from conftest import ANOMALIB


def test_training_twice_gives_equal_banks(mvtec_root: Path, tmp_path: Path, run_python: Callable) -> None:
    """Bit by bit, in two processes, with an untrained backbone and shuffled images."""
    states = []
    for name in ("first", "second"):
        run_python(
            *("-c", ANOMALIB, "train", "--model=SoftPatch", "--model.backbone=resnet18", "--model.layers=[layer2]"),
            *("--model.pre_trained=false", "--model.noise_report=false", "--data=MVTecAD", f"--data.root={mvtec_root}"),
            *("--data.category=bottle", "--data.num_workers=0", f"--default_root_dir={tmp_path / name}"),
            cwd=tmp_path,
        )
        (checkpoint,) = (tmp_path / name).rglob("*.ckpt")
        states.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    first, second = states
    assert first.keys() == second.keys()
    assert len(first["model.memory_bank"]) > 100
    for name, value in first.items():
        equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert equal, name
