# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command predict under failures: every image gets a row, and no result is lost."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import COMMAND
from samples import OUTPUTS, read_rows, save_brightness_model, save_dark_image

SOME_UNREADABLE, INTERRUPTED = 3, 130
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_brightness_model(tmp_path_factory.mktemp("model") / "model.onnx", OUTPUTS)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    save_dark_image(folder / "a.png", 255)
    save_dark_image(folder / "b.png", 51)
    save_dark_image(folder / "sub" / "c.png", 204)
    return folder


def spoil(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def start(*arguments: object, cwd: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "predict", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run_anew(*arguments: object, cwd: Path, **options: object) -> tuple[int, str, str]:
    process = start(*arguments, cwd=cwd, **options)
    printed, error = process.communicate(timeout=120)
    return process.returncode, printed, error


@pytest.fixture
def run(run_forked: Callable[..., subprocess.CompletedProcess[str]]) -> Run:
    """Return a function that runs the command and returns exit status, output and messages."""

    def run(*arguments: object, cwd: Path) -> tuple[int, str, str]:
        result = run_forked("-c", COMMAND, "predict", *arguments, cwd=cwd, timeout=120, check=False)
        return result.returncode, result.stdout, result.stderr

    return run


def verdicts(file: Path) -> dict[str, str]:
    return {Path(row["path"]).name: row["verdict"] for row in read_rows(file)}


def test_an_unreadable_file_gets_a_row_and_an_exit_status(images: Path, model: Path, tmp_path: Path) -> None:
    spoil(images / "b.png")
    (images / "notes.txt").write_text("no image")
    status, printed, error = run_anew(images, "--model", model, cwd=tmp_path)
    assert (status, error) == (SOME_UNREADABLE, "")
    assert verdicts(tmp_path / "predictions.csv") == {"a.png": "anomalous", "b.png": "unreadable", "c.png": "anomalous"}
    row = read_rows(tmp_path / "predictions.csv")[1]
    assert "cannot be read" in row["reason"]
    assert (row["score"], row["threshold"], row["x"], row["y"]) == ("", "", "", "")
    lines = printed.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("unreadable")
    assert str(images / "b.png") in lines[1]
    left_out = "1 file with another extension left out (.txt)"
    assert lines[3] == f"2 of 2 images anomalous, 1 unreadable, {left_out}: predictions.csv"


def test_the_peak_is_in_pixels_of_the_image(images: Path, model: Path, tmp_path: Path, run: Run) -> None:
    assert run(images / "sub" / "c.png", "--model", model, cwd=tmp_path)[0] == 0
    (row,) = read_rows(tmp_path / "predictions.csv")
    assert (float(row["score"]), row["x"], row["y"]) == (pytest.approx(0.8), "12", "7")


def test_an_image_that_the_model_cannot_score_does_not_stop_the_others(images: Path, tmp_path: Path, run: Run) -> None:
    nan = save_brightness_model(tmp_path / "nan.onnx", OUTPUTS, offset=float("nan"))
    status, _, error = run(images, "--model", nan, cwd=tmp_path)
    assert (status, error) == (SOME_UNREADABLE, "")
    assert [(row["verdict"], row["reason"]) for row in read_rows(tmp_path / "predictions.csv")] == [
        ("unreadable", "its score is NaN")
    ] * 3


def test_decisions_about_the_images_make_a_promise(images: Path, model: Path, tmp_path: Path, run: Run) -> None:
    """Images of earlier runs count, too, and the file of decisions may have relative paths."""
    save_dark_image(images / "sub" / "d.png", 30)
    (tmp_path / "decisions.csv").write_text(
        f"path,verdict,region\n{images / 'a.png'},defect,12 7 1 1\nimages/b.png,normal,\n"
        "images/sub/c.png,false_alarm,\n"
    )
    printed = []
    for _ in range(2):
        status, text, error = run(images, "--model", model, "--decisions", "decisions.csv", cwd=tmp_path)
        assert (status, error) == (0, "")
        printed.append(text.splitlines()[-4:])
    assert printed[0] == printed[1]
    # 1 of 2 good images and 1 of 1 defects: 1 - 0.05^2 / 4 = 1 - (1 - p)^2 for the share p, and 0.05
    assert printed[0][:3] == [
        "2 of 4 images anomalous: predictions.csv",
        "Good images: 1 of 2 decided are called anomalous. At most 97.5 % of all are, 95 % sure; 5 % takes 91 more "
        "good images, none called anomalous.",
        "Defects: 1 of 1 decided are found. At least 5.0 % of all are, 95 % sure.",
    ]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for number in range(400):
        save_dark_image(tmp_path / "many" / f"{number:04}.png", number % 256)
    return tmp_path / "many"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_its_results_and_can_be_continued(
    many: Path, model: Path, tmp_path: Path, ending: signal.Signals, run: Run
) -> None:
    output = tmp_path / "predictions.csv"
    process = start(many, "--model", model, cwd=tmp_path)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(ending)
    _, error = process.communicate(timeout=60)
    if ending == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == INTERRUPTED
        assert error.strip().startswith("Stopped. The same command continues from here")
    before = output.read_text()
    assert 3 <= before.count("\n") - 1 < 400
    with output.open("a") as file:
        file.write(f"{many}/0399.png,0.12")  # half a row, as a killed process may leave it
    status, printed, error = run(many, "--model", model, cwd=tmp_path)
    assert (status, error) == (0, "")
    assert output.read_text().startswith(before)
    rows = read_rows(output)
    assert [Path(row["path"]) for row in rows] == sorted(many.iterdir())  # each exactly once
    expected = ["anomalous" if number % 256 / 255 > 0.5 else "normal" for number in range(400)]
    assert [row["verdict"] for row in rows] == expected
    assert f"{before.count(chr(10)) - 1} images of 400 already scored by an earlier run." in printed
    assert printed.splitlines()[-1].startswith(f"{expected.count('anomalous')} of 400 images anomalous")


def test_a_full_disk_loses_no_earlier_results(many: Path, model: Path, tmp_path: Path, run: Run) -> None:
    limit = 2000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    status, _, error = run_anew(many, "--model", model, cwd=tmp_path, preexec_fn=limited)
    assert status == 2
    assert "predictions.csv' cannot be written to any more: File too large." in error
    assert error.count("\n") == 1
    output = tmp_path / "predictions.csv"
    assert output.read_bytes().endswith(b"\n")
    assert limit - 400 < output.stat().st_size <= limit
    assert run(many, "--model", model, cwd=tmp_path)[0] == 0
    assert len(read_rows(output)) == 400


def test_another_run_scores_only_new_and_changed_images(images: Path, model: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "predictions.csv"
    spoil(images / "a.png")
    assert run(images, "--model", model, cwd=tmp_path)[0] == SOME_UNREADABLE
    before = output.read_text()
    status, printed, _ = run(images, "--model", model, cwd=tmp_path)
    assert (status, output.read_text()) == (SOME_UNREADABLE, before)  # still unreadable: no second row
    assert printed.splitlines()[-1].startswith("1 of 2 images anomalous, 1 unreadable")
    save_dark_image(images / "a.png", 255)
    save_dark_image(images / "d.png", 0)
    assert run(images, "--model", model, cwd=tmp_path)[0] == 0
    assert output.read_text().startswith(before)
    assert [Path(row["path"]).name for row in read_rows(output)] == ["a.png", "b.png", "c.png", "a.png", "d.png"]
    assert verdicts(output)["a.png"] == "anomalous"


REFUSED = {
    "cannot be written to": ["--output", "absent/no folder.txt/p.csv"],
    "is not a table of this command": ["--output", "mine.csv"],
    "'.' is not a file": ["--output", "."],
    "'/dev/full' is not a file": ["--output", "/dev/full"],
    "holds verdicts of another model": ["--output", "other.csv"],
    "is where the page would be and is not a page of predictions": ["--page", "--output", "taken.csv"],
    "heartbeat=0.0 must be a number of seconds above 0": ["--heartbeat", "0"],
    "is not a table with the columns path, verdict, region": ["--decisions", "mine.csv"],
    "decides about 1 image, none of which is among the 3 of this run": ["--decisions", "elsewhere.csv"],
    "Leave out watch": ["--decisions", "elsewhere.csv", "--watch"],
    "false_alarms=0.0 must be a share above 0": ["--false_alarms", "0"],
}
REFUSAL = """
import json, sys
from anomalib_softpatch.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(["predict", *arguments])
    except SystemExit as error:
        print(error.code, sorted({"torch", "anomalib", "pandas"} & sys.modules.keys()))
"""


def test_bad_options_are_refused_before_the_first_image(
    images: Path, model: Path, tmp_path: Path, run: Run, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """They are also refused before anything slow is imported."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "no folder.txt").touch()
    (tmp_path / "mine.csv").write_text("part,price\n1,2\n")
    (tmp_path / "taken_thumbnails").mkdir()
    (tmp_path / "taken_thumbnails" / "holiday.jpg").touch()
    (tmp_path / "elsewhere.csv").write_text("path,verdict,region\n/a.png,normal,\n")
    other = save_brightness_model(tmp_path / "other.onnx", OUTPUTS, offset=0.1)
    assert run(images, "--model", other, "--output", "other.csv", cwd=tmp_path)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = json.dumps([[str(images), "--model", str(model), *case] for case in REFUSED.values()])
    result = run_python("-c", REFUSAL, arguments, cwd=tmp_path)
    assert result.stdout.splitlines() == ["2 []"] * len(REFUSED)
    for line, message in zip(result.stderr.splitlines(), REFUSED, strict=True):
        assert message in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_foreign_files_are_refused_in_one_line(images: Path, model: Path, tmp_path: Path, run: Run) -> None:
    import torch

    foreign = save_brightness_model(tmp_path / "foreign.onnx", {"score": "logits", "map": "features"})
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:100])
    broken = tmp_path / "broken.xml"
    broken.write_text("<net>")
    checkpoint = tmp_path / "patchcore.ckpt"
    torch.save({"state_dict": {"model.memory_bank": torch.ones(2, 3)}, "hyper_parameters": {}}, checkpoint)
    nothing = tmp_path / "nothing.ckpt"
    nothing.write_bytes(b"no checkpoint")
    cases = [
        ("--model", foreign, "is not an exported anomaly detector: it has the outputs logits, features, and not"),
        ("--model", cut, "cannot be read, it may be incomplete"),
        ("--model", broken, "cannot be read, it may be incomplete"),
        ("--ckpt_path", checkpoint, "is not a checkpoint of SoftPatch or SoftPatchPlus. anomalib predict can"),
        ("--ckpt_path", nothing, "nothing.ckpt"),
    ]
    for option, file, message in cases:
        status, printed, error = run(images, option, file, cwd=tmp_path)
        assert (status, printed) == (2, ""), error
        assert message in error
        assert error.count("\n") == 1, error
        assert not (tmp_path / "predictions.csv").exists()


@pytest.fixture
def watching(images: Path, model: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def watch() -> subprocess.Popen[str]:
        process = start(images, "--model", model, "--heartbeat", 0.5, "--watch", cwd=tmp_path)
        started.append(process)
        return process

    yield watch
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_folder_is_watched_until_it_is_stopped(
    images: Path, tmp_path: Path, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    """Only complete files are scored, each gets one row, and a restart repeats none."""
    output = tmp_path / "predictions.csv"
    process = watching()
    wait_for(lambda: output.exists() and len(read_rows(output)) == 3)
    save_dark_image(tmp_path / "new.png", 230)
    content = (tmp_path / "new.png").read_bytes()
    with (images / "slow.png").open("wb", buffering=0) as file:  # a slow camera
        for place in range(0, len(content), 20):
            file.write(content[place : place + 20])
            time.sleep(0.5)
            assert "slow.png" not in verdicts(output)
    wait_for(lambda: "slow.png" in verdicts(output))
    (images / "a.png").unlink()  # removed
    save_dark_image(images / "b.png", 255)  # another image with an old name
    spoil(images / "sub" / "c.png")  # a file that will not be completed
    wait_for(lambda: len(read_rows(output)) == 6)
    process.send_signal(signal.SIGTERM)
    printed, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (SOME_UNREADABLE, "")
    written = [(Path(row["path"]).name, row["verdict"]) for row in read_rows(output)]
    assert sorted(written[:3]) == [("a.png", "anomalous"), ("b.png", "normal"), ("c.png", "anomalous")]
    assert written[3:] == [("slow.png", "anomalous"), ("b.png", "anomalous"), ("c.png", "unreadable")]
    assert f" watching {images}: 3 of 4 images anomalous" in printed

    before = output.read_text()
    process = watching()
    save_dark_image(images / "d.png", 0)
    wait_for(lambda: "d.png" in verdicts(output))
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")  # this run found no new unreadable image
    assert output.read_text().startswith(before)
    assert len(read_rows(output)) == 7


def test_an_empty_folder_can_be_watched_but_not_a_missing_one(
    images: Path, model: Path, tmp_path: Path, watching: Callable[..., subprocess.Popen[str]], run: Run
) -> None:
    for path in [*images.glob("*.png"), images / "sub" / "c.png"]:
        path.unlink()
    process = watching()
    assert process.stdout is not None
    assert process.stdout.readline() == f"Watching {images}. Ctrl-C ends it.\n"
    assert "watching" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert printed.splitlines()[-1] == "0 of 0 images anomalous: predictions.csv"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    status, _, error = run(tmp_path / "nowhere", "--model", model, "--watch", cwd=tmp_path)
    assert status == 2
    assert "is not a folder" in error
