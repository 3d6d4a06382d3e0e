# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""One command from an uncleaned folder to verdicts. It is killed on the way, and started again."""

import csv
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from anomalib_softpatch.cli import main
from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.images.decisions import DEFECT, NORMAL, UNDECIDED, Box, Decision
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.models import load_model
from conftest import COMMAND
from samples import save_random_weights, write_decisions

GOOD = 16


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return options of a backbone with random weights, enough to distinguish a black square from gray noise."""
    backbone = save_random_weights(tmp_path_factory.mktemp("weights"))
    return ["--backbone", backbone, "--layers", "[layer2]", "--image_size", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an uncleaned folder: gray images, two defects, a copy of one, a broken file, and a text file."""
    root = tmp_path_factory.mktemp("clean_train") / "unsorted"
    rng = np.random.default_rng(0)
    for name in [*(f"a/{index}.png" for index in range(GOOD)), "b/defect\n.png", "b/other defect.png"]:
        pixels = rng.integers(120, 136, (64, 64, 3), dtype=np.uint8)
        if "defect" in name:
            pixels[16:32, 16:32] = 0
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    (root / "copy.png").write_bytes((root / "b" / "defect\n.png").read_bytes())
    (root / "broken.png").write_bytes((root / "a" / "0.png").read_bytes()[:500])
    (root / "notes.txt").write_text("no image")
    return root


def features(output: Path) -> dict[Path, int]:
    """Return files of features with their inodes, which would change if they were written again."""
    return {path: path.stat().st_ino for path in output.glob("features/*/*.safetensors")}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The command, in a process that kills itself as soon as it has extracted the features of an image
KILLED = f"""
import os, signal, threading, time
from pathlib import Path

def watch():
    while not any(Path().glob("unsorted-trained/features/*/*.safetensors")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
{COMMAND}
"""


@pytest.fixture(scope="module")
def killed(folder: Path, options: list[str], run_forked: Callable) -> tuple[Path, dict[Path, int]]:
    """Return the output folder of a run that was killed during extraction, and the features that it had extracted."""
    output = folder.with_name("unsorted-trained")  # the default
    command = ("clean-train", folder, *options, "--batch_size", 1)
    ended = run_forked("-c", KILLED, *command, cwd=folder.parent, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return output, features(output)


@pytest.fixture(scope="module")
def finished(
    folder: Path, options: list[str], killed: tuple[Path, dict[Path, int]], run_forked: Callable
) -> tuple[Path, str, str]:
    """Return the output folder, printed text and messages of the same command, run again with an export."""
    output, _ = killed
    assert not (output / "model.ckpt").exists()
    before = contents(folder)
    command = ("clean-train", folder, *options, "--batch_size", 1, "--export", "onnx", "--output", output)
    ended = run_forked("-c", COMMAND, *command, cwd=folder.parent)
    assert "GPU available" not in ended.stderr  # a message of another library that users cannot act on
    assert "Traceback" not in ended.stderr
    assert contents(folder) == before
    return output, ended.stdout, ended.stderr


def test_continues_where_it_was_killed(killed: tuple[Path, dict[Path, int]], finished: tuple[Path, str, str]) -> None:
    output, extracted = killed
    assert extracted
    assert features(output).items() >= extracted.items()
    assert len(features(output)) == GOOD + 2  # report and fit share them, and so do copies
    assert not list(output.glob(".*"))  # nothing unfinished is left


def test_set_aside_images_are_listed(folder: Path, finished: tuple[Path, str, str]) -> None:
    output, printed, _ = finished
    with (output / "set_aside.csv").open(newline="") as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {to_text(folder / "broken.png"), to_text(folder / "copy.png")}
    assert "cannot be read" in rows[to_text(folder / "broken.png")]
    assert rows[to_text(folder / "copy.png")] == r"exact copy of 'b/defect\n.png'"
    assert "[2/5] set aside 2 images (unreadable: 1, exact copies: 1)" in printed
    table = pd.read_csv(output / "report" / "images.csv")
    assert len(table) == GOOD + 3
    assert (output / "report" / "report.html").is_file()
    assert not (output / "decisions.csv").exists()


def test_the_self_check_warns_about_so_few_images(finished: tuple[Path, str, str], folder: Path) -> None:
    """The warning is on the terminal, in the summary, and in the report, which was written before the fit."""
    output, printed, _ = finished
    summary = json.loads((output / "summary.json").read_text())
    check = summary["self_check"]
    assert check["verdict"] == "do not use it"
    assert check["different_images"] == check["scored_images"] == GOOD + 2
    low, high = check["false_alarms_between"]
    scores = np.array(json.loads((output / "state.json").read_text())["stages"]["fit"]["result"]["image_scores"])
    above = int((scores > summary["threshold"]).sum())
    assert check["above_threshold"] == above >= 2  # the two defects
    assert low < 0.025  # so uncertain that no rate is printed
    assert high == pytest.approx(binomtest(above, GOOD + 2).proportion_ci(0.95, method="exact").high)
    assert "for about" not in printed
    page = (output / "report" / "report.html").read_text()
    for line in check["lines"]:
        assert line in printed
        assert page.count(escape(line)) == 1
    assert f"First:     {check['next']}" in printed
    assert check["next"] == "the same command with more images"


def test_next_command_gives_verdicts_by_the_threshold(
    folder: Path, finished: tuple[Path, str, str], tmp_path: Path, run_forked: Callable
) -> None:
    """The command is run as it was printed, and the checkpoint agrees with the exported file.

    Both end with the exit status for images that could not be scored, because of the broken file.
    """
    output, printed, _ = finished
    summary = json.loads((output / "summary.json").read_text())
    assert summary["next"] in printed
    assert (summary["images"], summary["set_aside"], summary["trained_on"]) == (GOOD + 4, 2, GOOD + 2)
    name, *arguments = shlex.split(summary["next"].replace("NEW_IMAGES", str(folder)))
    assert name == "anomalib-softpatch"
    process = run_forked("-c", COMMAND, *arguments, cwd=tmp_path, check=False)
    assert process.returncode == 3, process.stderr[-4000:]
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(folder), "--ckpt_path", str(output / "model.ckpt"), "--output", str(tmp_path / "2.csv")])
    assert ended.value.code == 3
    tables = [pd.read_csv(tmp_path / name) for name in ("predictions.csv", "2.csv")]
    for each in tables:
        assert each["path"][each["verdict"] == "unreadable"].to_list() == [to_text(folder / "broken.png")]
    table, other = (each[each["verdict"] != "unreadable"] for each in tables)
    np.testing.assert_allclose(table["score"], other["score"], rtol=1e-3)
    defective = table["path"].str.contains("defect|copy")
    assert (table["threshold"] == 0.5).all()
    assert (table["verdict"][defective] == "anomalous").all()
    assert (table["verdict"][~defective] == "normal").mean() > 0.7


def test_a_good_run_prints_only_what_the_user_needs(
    finished: tuple[Path, str, str],
) -> None:
    """`test_first_hour.py` tests the same for the imports."""
    _, printed, error = finished
    for remark in ("Warning", "Unexpected", "ambiguous", "INFO"):
        assert remark not in error, error
    assert "Warning" not in printed


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(list(map(str, arguments)))
    return capfd.readouterr().out


def test_another_threshold_does_not_need_another_fit(
    folder: Path,
    options: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checkpoint equals that of a fit with this share. Options of the model are given under their own names."""
    more = ("--coreset_sampling_ratio", 0.2, "--model.seed=3", "--output", tmp_path / "out")
    run(capfd, "clean-train", folder, *options, *more, "--feature_cache", tmp_path / "features")
    model = load_model(tmp_path / "out" / "model.ckpt")
    assert (model.hparams["coreset_sampling_ratio"], model.hparams["seed"]) == (0.2, 3)
    fitted = shutil.copytree(tmp_path / "out", tmp_path / "fitted")
    (fitted / "model.ckpt").unlink()
    again = ("clean-train", folder, *options, *more[:-1], fitted, "--feature_cache", tmp_path / "features")
    run(capfd, *again, "--false_alarms", 0.3)

    monkeypatch.setattr("anomalib_softpatch.cleaning.stages.Engine.fit", lambda *_, **__: pytest.fail("a fit was run"))
    again = ("clean-train", folder, *options, *more, "--feature_cache", tmp_path / "features")
    assert "already done, except for the threshold" in run(capfd, *again, "--false_alarms", 0.3)
    states = [torch.load(place / "model.ckpt", weights_only=True) for place in (tmp_path / "out", fitted)]
    assert states[0].keys() == states[1].keys()
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    for name, tensor in states[0]["state_dict"].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(tensor, states[1]["state_dict"][name], equal_nan=True)
    taught = [state["state_dict"]["model._extra_state"]["teaching"] for state in states]
    assert taught[0]["names"] == taught[1]["names"]
    torch.testing.assert_close(taught[0]["maps"], taught[1]["maps"])
    assert load_model(tmp_path / "out" / "model.ckpt").post_processor.false_alarms == 0.3
    summaries = [json.loads((place / "summary.json").read_text()) for place in (tmp_path / "out", fitted)]
    assert summaries[0]["threshold"] == pytest.approx(summaries[1]["threshold"])
    assert "already done\n" in run(capfd, *again, "--false_alarms", 0.3).split("[3/5]")[1]


def test_another_run_computes_only_what_depends_on_changed_options(
    folder: Path,
    options: list[str],
    finished: tuple[Path, str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same command computes nothing. Another threshold, decisions and a move do not need the backbone."""
    output, *_ = finished
    extract = PatchFeatureExtractor._extract

    def no_image(self: PatchFeatureExtractor, images: torch.Tensor) -> torch.Tensor:
        assert not images.any(), "the backbone was run on an image, and not on the zeros that test the size"
        return extract(self, images)

    monkeypatch.setattr(PatchFeatureExtractor, "_extract", no_image)
    command = ("clean-train", folder, *options)
    threshold = json.loads((output / "summary.json").read_text())["threshold"]
    everything = contents(output)
    for more in (["--export", "onnx"], []):
        printed = run(capfd, *command, *more)
        assert printed.count("already done") == 3
        assert contents(output) == everything

    decisions = tmp_path / "decisions.csv"
    decided = [("b/other defect.png", DEFECT, Box(1, 2, 3, 4)), ("b/defect\n.png", NORMAL), ("a/0.png", UNDECIDED)]
    write_decisions([Decision(folder / name, *rest) for name, *rest in decided], decisions)
    before = contents(folder)
    aside = tmp_path / "aside"
    command += ("--decisions", decisions, "--move_to", aside, "--set_aside", 0.1)
    printed = run(capfd, *command, "--false_alarms", 0.3)
    assert printed.count("already done") == 1
    assert "model.onnx: from an earlier run, perhaps with another threshold" in printed
    assert "--ckpt_path" in json.loads((output / "summary.json").read_text())["next"]
    moved = {"b/other defect.png", "copy.png", "broken.png"}
    assert {str(path.relative_to(folder)) for path in before.keys() - contents(folder).keys()} == moved
    assert {str(path.relative_to(aside)) for path in contents(aside)} == moved | {"moved.csv"}
    listed = pd.read_csv(output / "set_aside.csv")
    assert sorted(listed["moved_to"]) == sorted(str(aside / name) for name in moved)
    assert json.loads((output / "summary.json").read_text())["threshold"] < threshold

    # Moved images are remembered, and no share of the others is set aside again
    printed = run(capfd, *command, "--false_alarms", 0.3)
    assert printed.count("already done") == 2
    assert pd.read_csv(output / "set_aside.csv").equals(listed)

    run(capfd, "undo", aside / "moved.csv", "--dry_run", "false")
    assert contents(folder) == before
    printed = run(capfd, *command, "--false_alarms", 0.3, "--move_to", tmp_path / "again")
    assert printed.count("already done") == 2
    run(capfd, "undo", tmp_path / "again" / "moved.csv", "--dry_run", "false")
    assert contents(folder) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_tells_the_user_how_to_continue(
    folder: Path,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    """Lightning turns a KeyboardInterrupt into a SystemExit."""

    def interrupted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("anomalib_softpatch.cleaning.stages.Engine.fit", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["clean-train", str(folder), *options, "--output", str(tmp_path / "out")])
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith("Stopped. The same command continues from here.\n")
    assert not (tmp_path / "out" / ".working").exists()


REFUSAL = """
import json, sys
from anomalib_softpatch.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(["clean-train", *arguments])
    except SystemExit as error:
        print(error.code, sorted({"torch", "anomalib", "timm", "pandas", "matplotlib"} & sys.modules.keys()))
"""


def test_bad_input_is_refused_before_anything_slow_is_imported(
    folder: Path, tmp_path: Path, run_python: Callable
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / "other.csv").write_text("path,decision\n/elsewhere/a.png,keep\n")
    (tmp_path / "contradiction.csv").write_text("path,verdict,region\n/a.png,normal,\n/a.png,defect,\n")
    cases = {
        "is not a folder": [tmp_path / "nowhere"],
        "has no images": [tmp_path / "empty"],
        "not from an earlier run": [folder, "--output", tmp_path / "mine"],
        "where nothing may change": [folder, "--output", folder / "out"],
        "false_alarms=1.5 must be a share above 0": [folder, "--false_alarms", 1.5],
        "set_aside=1.0 must be a share of at least 0": [folder, "--set_aside", 1.0],
        "image_size=0 must be a whole number of 32": [folder, "--image_size", 0],
        "stride=3 needs tiles": [folder, "--stride", 3],
        "batch_size=0 must be": [folder, "--batch_size", 0],
        "layers must name": [folder, "--layers", "[]"],
        "none of which is in folder=": [folder, "--decisions", tmp_path / "other.csv"],
        "is not a table": [folder, "--decisions", folder / "notes.txt"],
        "row 3: '/a.png' is defect here and normal in row 2": [folder, "--decisions", tmp_path / "contradiction.csv"],
        "cannot be written to": [folder, "--output", tmp_path / "other.csv" / "out"],
    }
    arguments = json.dumps([list(map(str, case)) for case in cases.values()])
    result = run_python("-c", REFUSAL, arguments, cwd=tmp_path)
    assert result.stdout.splitlines() == ["2 []"] * len(cases)
    lines = result.stderr.splitlines()
    assert len(lines) == len(cases)
    for line, message in zip(lines, cases, strict=True):
        assert line.startswith("anomalib-softpatch clean-train: ")
        assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet1o"], "is not a model of timm"),
        (["--device", "abacus"], "device='abacus' cannot be used here"),
        (["--layers", "[layer9]"], "layer9"),
        (["--false_alarm", "0.1"], "Did you mean --false_alarms?"),
        (["--coreset_sampling_ratio", "7"], "coreset_sampling_ratio"),
        (["--coreset_sampling_ratio", "much"], "coreset_sampling_ratio"),
        (["--model", "SoftPatch", "--discriminators", "[lof]"], "Did you mean --discriminator?"),
    ],
)
def test_other_bad_options_are_refused_before_anything_is_written(
    folder: Path,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["clean-train", str(folder), *options, "--output", str(tmp_path / "out"), *arguments])
    assert error.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_too_few_images_are_left(
    folder: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two").mkdir()
    for name in ("0.png", "1.png"):
        os.link(folder / "a" / name, tmp_path / "two" / name)
    with pytest.raises(SystemExit):
        main(["clean-train", str(tmp_path / "two"), *options, "--set_aside", "0.5"])
    assert "Only 1 of 2 images are left to train on" in capsys.readouterr().err
