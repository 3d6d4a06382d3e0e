# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command clean-train: what it refuses, and folders that change between two runs."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from anomalib_softpatch.backbones import Backbone
from anomalib_softpatch.cleaning import command, stages
from anomalib_softpatch.cleaning.command import clean_train
from anomalib_softpatch.components.self_check import FitFacts
from anomalib_softpatch.report.decisions import undo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for number in range(10):
        (root / f"{number}.png").write_text(str(number))
    return root


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the stages that run. They only write placeholders for their files, and rank images by name."""
    computed: list[str] = []

    def make_report(folder: Path, output: Path, options: stages.Options) -> dict[str, object]:
        computed.append("report")
        (output / "report").mkdir(exist_ok=True)
        (output / "report" / "report.html").touch()
        return {"ranked": sorted(path.name for path in folder.iterdir()), "unreadable": {}, "largest_value": 255}

    def fit(
        paths: list[Path], output: Path, options: stages.Options, false_alarms: float, largest_value: int
    ) -> dict[str, object]:
        assert largest_value == 255
        assert options.extraction.backbone == "test_resnet"
        assert all(path.is_file() for path in paths)
        computed.append(f"fit on {len(paths)}")
        (output / "model.ckpt").write_text(" ".join(path.name for path in paths))
        facts = FitFacts(len(paths), len(paths), (0.5,) * len(paths), None, 0.0, 0.0, None, 0.0)
        return {"threshold": 1.0, "facts": asdict(facts), "scale": None}

    monkeypatch.setattr(command, "choose_backbone", lambda *_: Backbone("test_resnet", ["layer2"]))  # without a hub
    monkeypatch.setattr(stages, "prepare", lambda options, *_: options)
    monkeypatch.setattr(stages, "make_report", make_report)
    monkeypatch.setattr(stages, "fit", fit)
    return computed


def test_missing_libraries_are_named_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(ValueError, match="export='openvino' needs openvino, which the extra openvino"):
        clean_train(folder, export="openvino")
    assert [path.name for path in folder.parent.iterdir()] == ["images"]


def test_a_share_is_set_aside_only_once(folder: Path, done: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        clean_train(folder, set_aside=0.2, move_to=tmp_path / "aside")
        assert sorted(path.name for path in folder.iterdir()) == [f"{number}.png" for number in range(2, 10)]
    assert done == ["report", "fit on 8"]
    clean_train(folder)  # images that were moved away are not trained on, whatever the options
    assert done == ["report", "fit on 8"]


def test_images_that_an_earlier_version_has_moved_are_known(
    folder: Path, done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its state does not record the kinds of the reasons."""
    clean_train(folder, set_aside=0.2, move_to=tmp_path / "aside")
    assert "set aside 2 images (most suspicious: 2)" in capsys.readouterr().out
    file = tmp_path / "images-trained" / "state.json"
    state = json.loads(file.read_text())
    for entry in state["stages"]["move"]["result"]["moves"].values():
        assert entry.pop("kind") == "most suspicious"
    file.write_text(json.dumps(state))
    before = (tmp_path / "images-trained" / "set_aside.csv").read_text()
    clean_train(folder)
    assert done == ["report", "fit on 8"]
    assert "set aside 2 images (by another version: 2)" in capsys.readouterr().out
    assert (tmp_path / "images-trained" / "set_aside.csv").read_text() == before


def test_new_images_make_a_new_report(folder: Path, done: list[str], tmp_path: Path) -> None:
    clean_train(folder, set_aside=0.2, move_to=tmp_path / "aside")
    (folder / "new.png").write_text("new")
    clean_train(folder)
    assert done == ["report", "fit on 8", "report", "fit on 9"]
    listed = (tmp_path / "images-trained" / "set_aside.csv").read_text().splitlines()
    assert len(listed) == 3  # with the header; images that were moved away are still listed
    undo(tmp_path / "aside" / "moved.csv", dry_run=False)
    clean_train(folder)
    assert done[4:] == ["report", "fit on 11"]


def test_half_a_move_is_finished(
    folder: Path, done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomalib_softpatch.report import decisions

    move, moved = decisions.shutil.move, []

    def stopping(source: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(source)
        move(source, target)

    monkeypatch.setattr(decisions.shutil, "move", stopping)
    with pytest.raises(SystemExit):
        clean_train(folder, set_aside=0.3, move_to=tmp_path / "aside")
    assert len(list(folder.iterdir())) == 9
    monkeypatch.setattr(decisions.shutil, "move", move)
    clean_train(folder, set_aside=0.3, move_to=tmp_path / "aside")
    assert len(list(folder.iterdir())) == 7
    assert done == ["report", "fit on 7"]
    undo(tmp_path / "aside" / "moved.csv", dry_run=False)
    assert len(list(folder.iterdir())) == 10


def test_another_image_of_an_old_name_is_a_new_image(folder: Path, done: list[str]) -> None:
    clean_train(folder)
    (folder / "0.png").write_text("another")
    clean_train(folder)
    (folder.parent / "images-trained" / "model.ckpt").unlink()
    clean_train(folder)
    assert done == ["report", "fit on 10", "report", "fit on 10", "fit on 10"]


def test_another_threshold_that_was_not_finished_is_set_again(
    folder: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint may have either threshold then; the one of the options is set."""

    def stopped(*_: object) -> float:
        raise KeyboardInterrupt

    clean_train(folder)
    monkeypatch.setattr(stages, "set_threshold", stopped)
    with pytest.raises(SystemExit):
        clean_train(folder, false_alarms=0.3)
    monkeypatch.setattr(stages, "set_threshold", lambda *_: done.append("threshold") or 2.0)
    clean_train(folder)
    clean_train(folder)
    assert done == ["report", "fit on 10", "threshold"]


def test_a_folder_with_other_files_is_not_changed(folder: Path, done: list[str], tmp_path: Path) -> None:
    (tmp_path / "images-trained").mkdir()
    (tmp_path / "images-trained" / "model.ckpt").write_text("mine")
    with pytest.raises(ValueError, match="not from an earlier run"):
        clean_train(folder)
    assert not done
    assert (tmp_path / "images-trained" / "model.ckpt").read_text() == "mine"
