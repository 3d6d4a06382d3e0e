# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command line, and applying the decisions that a report's page saves."""

import csv
import os
from pathlib import Path

import pytest

from anomalib_softpatch.cli import main
from anomalib_softpatch.images.paths import from_text, to_text
from anomalib_softpatch.report import decisions as decisions_module
from anomalib_softpatch.report.decisions import apply, undo

DEFECT = "b/line\nbreak.png"
SET_ASIDE = {"a/1.png", DEFECT, 'b/comma, quote".png'}
KEPT = {"a/0.png", "b/2.png", "-rf.png"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in SET_ASIDE | KEPT:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def decisions(images: Path, tmp_path: Path) -> Path:
    file = tmp_path / "decisions.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "verdict", "region"])
        for name in sorted(SET_ASIDE | KEPT):
            verdict = {DEFECT: "defect", "a/0.png": "normal"}.get(name, "set_aside" if name in SET_ASIDE else "")
            writer.writerow([to_text(images / name), verdict, ""])
    return file


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["--move_to", "--copy_rest"])
def test_nothing_is_done_in_a_dry_run(
    images: Path, decisions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    main(["apply", str(decisions), option, str(tmp_path / "target")])
    assert files(images).keys() == SET_ASIDE | KEPT
    assert not (tmp_path / "target").exists()
    printed = capsys.readouterr().out
    assert "6 images: 2 set aside, 1 defect, 1 normal, 2 undecided." in printed
    assert "3 images would be" in printed
    assert "Nothing has been changed." in printed
    assert str(tmp_path / "target" / "a") in printed


def test_move_and_undo(images: Path, decisions: Path, tmp_path: Path) -> None:
    target = tmp_path / "set aside"
    main(["apply", str(decisions), "--move_to", str(target), "--dry_run", "false"])
    assert files(images) == {name: name for name in KEPT}
    assert {name: text for name, text in files(target).items() if name != "moved.csv"} == {
        name: name for name in SET_ASIDE
    }
    undo(target / "moved.csv")
    assert files(images).keys() == KEPT
    main(["undo", str(target / "moved.csv"), "--dry_run", "false"])
    assert files(images) == {name: name for name in SET_ASIDE | KEPT}
    # and again, to the same folder
    apply(decisions, move_to=target, dry_run=False)
    undo(target / "moved.csv", dry_run=False)
    assert files(images) == {name: name for name in SET_ASIDE | KEPT}


@pytest.mark.skipif(os.name == "nt", reason="Windows allows links to administrators only")
@pytest.mark.parametrize("how", ["relative", "absolute", "of a link"])
def test_no_link_is_left_that_leads_nowhere(images: Path, decisions: Path, tmp_path: Path, how: str) -> None:
    """A link that nobody decided about goes with the image it leads to; one that is set aside goes alone."""
    (images / "b" / "link.png").symlink_to("../a/1.png" if how == "relative" else images / "a" / "1.png")
    if how == "of a link":
        (images / "b" / "first.png").symlink_to("link.png")
    (images / "alone.png").symlink_to("a/0.png" if how == "relative" else images / "a" / "0.png")
    links = {path.name: path.readlink() for path in images.rglob("*.png") if path.is_symlink()}
    with decisions.open("a", newline="") as stream:
        for name in links:
            path = next(images.rglob(name))
            csv.writer(stream).writerow([to_text(path), "set_aside" if name == "alone.png" else "", ""])
    before = files(images)
    apply(decisions, move_to=tmp_path / "target", dry_run=False)
    moved = {name: text for name, text in files(tmp_path / "target").items() if name != "moved.csv"}
    assert moved | files(images) == before
    assert files(images) == {name: name for name in KEPT}
    assert not [path for path in images.rglob("*") if path.is_symlink()]
    assert (tmp_path / "target" / "alone.png").resolve() == images / "a" / "0.png"
    assert (tmp_path / "target" / "b" / "link.png").resolve() == tmp_path / "target" / "a" / "1.png"
    undo(tmp_path / "target" / "moved.csv", dry_run=False)
    assert files(images) == before
    assert {path.name: path.readlink() for path in images.rglob("*.png") if path.is_symlink()} == links


def test_copy_rest_takes_what_was_not_set_aside(images: Path, decisions: Path, tmp_path: Path) -> None:
    apply(decisions, copy_rest=tmp_path / "rest", dry_run=False)
    assert files(tmp_path / "rest") == {name: name for name in KEPT}
    assert files(images).keys() == SET_ASIDE | KEPT


def test_nothing_is_overwritten(images: Path, decisions: Path, tmp_path: Path) -> None:
    (tmp_path / "target" / "a").mkdir(parents=True)
    (tmp_path / "target" / "a" / "1.png").write_text("mine")
    (tmp_path / "target" / "a" / "0.png").symlink_to(tmp_path / "nowhere")
    for options in ({"move_to": tmp_path / "target"}, {"copy_rest": tmp_path / "target"}):
        with pytest.raises(ValueError, match="1 file would be overwritten, for example"):
            apply(decisions, **options, dry_run=False)
    assert files(images).keys() == SET_ASIDE | KEPT
    assert (tmp_path / "target" / "a" / "1.png").read_text() == "mine"


def test_stopped_move_can_be_undone_or_finished(
    images: Path, decisions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = decisions_module.shutil.move
    monkeypatch.setattr(decisions_module.shutil, "move", stop_after(2, move))
    with pytest.raises(KeyboardInterrupt):
        apply(decisions, move_to=tmp_path / "target", dry_run=False)
    monkeypatch.setattr(decisions_module.shutil, "move", move)
    assert len(files(images)) == 4
    apply(decisions, move_to=tmp_path / "target", dry_run=False)
    assert files(images).keys() == KEPT
    undo(tmp_path / "target" / "moved.csv", dry_run=False)
    assert files(images) == {name: name for name in SET_ASIDE | KEPT}


def stop_after(count: int, function: object) -> object:
    calls = []

    def stopping(*args: object) -> None:
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(args)
        function(*args)

    return stopping


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,decision\na.png,keep\n", "is not a table with the columns path, verdict, region"),
        ("path,decision\n/a.png,throw away\n", "row 2: the verdict 'throw away' must be normal, defect, set_aside, or"),
    ],
)
def test_files_that_do_not_hold_decisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "file.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit) as error:
        main(["apply", str(tmp_path / "file.csv"), "--move_to", str(tmp_path / "target")])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_targets(images: Path, decisions: Path, tmp_path: Path) -> None:
    for options in ({}, {"move_to": tmp_path / "a", "copy_rest": tmp_path / "b"}):
        with pytest.raises(ValueError, match="Give one of --copy_rest and --move_to"):
            apply(decisions, **options)
    with pytest.raises(ValueError, match="where the images are"):
        apply(decisions, move_to=images / "a" / "bad", dry_run=False)


def test_missing_images_are_left_out(
    images: Path, decisions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a" / "1.png").unlink()
    apply(decisions, move_to=tmp_path / "target", dry_run=False)
    assert "Left out because they no longer exist: 1." in capsys.readouterr().out
    assert files(images).keys() == KEPT


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["plain.png", "a b&c%23", "line\nbreak", "ümlaut.png", os.fsdecode(b"\xff.png")])
def test_paths_survive_as_text(name: str) -> None:
    path = Path("/folder") / name
    text = to_text(path)
    assert from_text(text) == path
    assert text.isprintable()
    text.encode()  # Unicode
