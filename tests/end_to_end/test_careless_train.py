# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""`anomalib train` with input that it cannot use: its last message tells what is wrong and what to do."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

# Each command line runs in its own process, forked after the slow imports. Errors are reported as the interpreter would
# report them. The process that forks has imported the command in the same way as its console script.
COMMANDS = """
import json, os, resource, sys
from anomalib.cli.cli import main

for name, limit, arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        output = os.open(name + ".txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["anomalib", *arguments]
        status = 0
        try:
            main()
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

MODEL = [
    "--model=SoftPatch", "--model.backbone=test_resnet", "--model.layers=[layer2]", "--model.pre_trained=false",
    "--model.coreset_sampling_ratio=0.01", "--trainer.accelerator=cpu", "--data=Folder", "--data.name=set",
    "--data.normal_dir=good", "--data.num_workers=0",
]  # fmt: skip
HOLD_NONE_BACK = ["--data.test_split_mode=none", "--data.val_split_mode=same_as_test"]
BAD = ["broken.png", "empty.png", "text.png", "truncated.jpg"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make folders of gray images: `plain` with eight, `one`, `three`, and `broken` with four that are not images."""
    root = tmp_path_factory.mktemp("careless")
    rng = np.random.default_rng(0)
    for name, count in (("plain", 8), ("one", 1), ("three", 3), ("broken", 8)):
        folder = root / name / "good"
        folder.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(100, 156, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    Image.open(folder / "0.png").save(folder / "truncated.jpg")
    for name, whole in (("truncated.jpg", folder / "truncated.jpg"), ("broken.png", folder / "0.png")):
        content = whole.read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def printed(root: Path, run_forked: Callable) -> dict[str, tuple[int, list[str]]]:
    """Return the exit status and the printed lines of each command."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork and no limits of file sizes")

    def train(data: str, *options: str, limit: int = 0) -> tuple[int, list[str]]:
        return limit, [
            "train",
            *MODEL,
            f"--data.root={root / data}",
            f"--default_root_dir={root / 'results'}",
            *options,
        ]

    commands = {
        "unreadable": train("broken"),
        "skipped": train("broken", "--model.skip_unreadable=true", f"--default_root_dir={root / 'skipped results'}"),
        "one": train("one"),
        "three": train("three"),
        "three held": train("three", *HOLD_NONE_BACK),
        "threshold": train("plain", "--model.threshold=1.5"),
        "backbone": train("plain", "--model.backbone=resnet1o"),
        "no folder": train("plain", "--model.backbone=local-dir:/nowhere", "--model.pre_trained=true"),
        "layer": train("plain", "--model.layers=[layer9]"),
        "full for features": train("plain", "--model.memory_budget=0", limit=100_000),
        "full for the checkpoint": train("plain", "--model.noise_report=false", limit=200_000),
    }
    arguments = json.dumps([[name, *command] for name, command in commands.items()])
    result = run_forked("-c", COMMANDS, arguments, cwd=root)
    statuses = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines())
    return {name: (int(statuses[name]), (root / f"{name}.txt").read_text().splitlines()) for name in commands}


def last_words(lines: list[str]) -> Iterator[str]:
    """Return the command's own message at the end of the output."""
    start = next(number for number, line in enumerate(lines) if line.startswith("anomalib: "))
    return iter(lines[start:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("threshold", "thresholds=1.5 must be a share of at least 0 and below 1, for example 0.1."),
        ("backbone", "backbone='resnet1o' is not a model of timm"),
        ("no folder", "backbone='local-dir:/nowhere': there is no config.json in that folder"),
        ("layer", "layers=['layer9'] "),
    ],
)
def test_wrong_option_ends_in_one_line(printed: dict[str, tuple[int, list[str]]], name: str, message: str) -> None:
    status, lines = printed[name]
    assert status == 1
    (line,) = last_words(lines)
    assert line.startswith(f"anomalib: {message}")
    assert not any("Traceback" in line for line in lines)


def test_all_unreadable_images_are_named_before_any_work(printed: dict[str, tuple[int, list[str]]], root: Path) -> None:
    status, lines = printed["unreadable"]
    assert status == 1
    first, *others = last_words(lines)
    assert first == (
        "anomalib: 4 images cannot be read. Repair or remove them, or leave them out with --model.skip_unreadable true:"
    )
    assert [line.strip().split(": ")[0] for line in others] == [str(root / "broken" / "good" / name) for name in BAD]
    assert not any("Epoch" in line for line in lines)


def test_fit_continues_without_unreadable_images(printed: dict[str, tuple[int, list[str]]], root: Path) -> None:
    status, lines = printed["skipped"]
    assert status == 0
    assert any("4 images cannot be read and are left out" in line for line in lines)
    (report,) = (root / "skipped results").rglob("v0/noise_report")
    assert [Path(path).name for path in pd.read_csv(report / "skipped.csv")["path"]] == BAD
    ranked = {Path(path).name for path in pd.read_csv(report / "images.csv")["path"]}
    assert ranked
    assert not ranked & set(BAD)
    assert list((root / "skipped results").rglob("v0/**/model.ckpt"))


@pytest.mark.parametrize(("name", "count"), [("one", 1), ("three", 3)])
def test_too_few_images_to_split(printed: dict[str, tuple[int, list[str]]], name: str, count: int) -> None:
    status, lines = printed[name]
    assert status == 1
    last = " ".join(line.strip() for line in lines[-5:])
    assert f"There are too few images to hold some back for tests: {count} for training, 0 for tests" in last
    assert last.endswith(" ".join(HOLD_NONE_BACK).replace("=", " ") + ".")


def test_three_images_train_if_none_is_held_back(printed: dict[str, tuple[int, list[str]]]) -> None:
    assert printed["three held"][0] == 0


def test_full_disk_is_named_last(printed: dict[str, tuple[int, list[str]]]) -> None:
    for name, message in (
        ("full for features", "anomalib: Features from image 1 on do not fit on the disk"),
        ("full for the checkpoint", "anomalib: The checkpoint "),
    ):
        status, lines = printed[name]
        assert status == 1
        (line,) = last_words(lines)
        assert line.startswith(message)
