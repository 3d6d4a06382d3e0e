# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command `anomalib-softpatch report` on folders as they are found in practice."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from anomalib_softpatch.cli import main
from anomalib_softpatch.report.command import report
from anomalib_softpatch.report.folder import find_images, read_image

LAYERS = ["layer2"]


@pytest.fixture(scope="module")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Backbone with random weights on disk: ranking a black square among grey noise takes no more."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_for_hf(timm.create_model("resnet18", pretrained=False), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve grey images in two folders, one of them with a black square: `b/odd.png`."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for name in [*(f"a/{index}.png" for index in range(6)), *(f"b/{index}.jpg" for index in range(5)), "b/odd.png"]:
        pixels = rng.integers(120, 136, (48, 64, 3), dtype=np.uint8)
        if "odd" in name:
            pixels[16:32, 16:32] = 0
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def contents(folder: Path) -> dict[str, tuple[bytes, float]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in files}


def test_ranks_copies_and_lists_without_touching_the_folder(
    folder: Path, small_backbone: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    report(
        folder,
        tmp_path / "out",
        small_backbone,
        LAYERS,
        image_size=64,
        suspicious=0.1,
        write_list=tmp_path / "list.txt",
        copy_rest=tmp_path / "rest",
    )
    assert contents(folder) == before
    table = pd.read_csv(tmp_path / "out" / "images.csv")
    assert table["path"][0] == str(folder / "b" / "odd.png")
    assert abs(table["highest_patch_x"][0] - 24) <= 16
    assert abs(table["highest_patch_y"][0] - 24) <= 16
    assert (tmp_path / "list.txt").read_text().splitlines() == [str(folder / "b" / "odd.png")]
    copied = {path.relative_to(tmp_path / "rest") for path in (tmp_path / "rest").rglob("*") if path.is_file()}
    originals = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert copied == originals - {Path("b/odd.png")}
    assert (tmp_path / "rest" / "a" / "0.png").read_bytes() == (folder / "a" / "0.png").read_bytes()
    printed = capfd.readouterr()
    assert "12 images ranked, 0 files skipped" in printed.out
    assert "12/12" in printed.err


def test_broken_and_odd_files_are_listed(folder: Path, small_backbone: str, tmp_path: Path) -> None:
    whole = (folder / "b" / "0.jpg").read_bytes()
    (folder / "empty.png").touch()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.png").write_bytes((folder / "a" / "0.png").read_bytes()[:2000])
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    (folder / "folder.png").mkdir()
    Image.new("RGB", (3, 2)).save(folder / "tiny.png")
    readable = {"grey": Image.new("L", (64, 48), 128), "cmyk": Image.new("CMYK", (64, 48))}
    readable["palette"] = Image.new("P", (40, 40))
    readable["alpha"] = Image.new("RGBA", (64, 48), (128, 128, 128, 40))
    readable["deep"] = Image.fromarray(np.full((48, 64), 30_000, dtype=np.uint16))
    for name, image in readable.items():
        image.save(folder / f"{name}.tif" if name == "cmyk" else folder / f"{name}.png")
    frames = [Image.new("L", (64, 48), value) for value in (0, 255)]
    frames[0].save(folder / "frames.tiff", save_all=True, append_images=frames[1:])
    report(folder, tmp_path / "out", small_backbone, LAYERS, image_size=64)
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv", index_col="path")["reason"]
    reasons = {Path(path).name: reason for path, reason in skipped.items()}
    assert reasons.keys() == {
        "empty.png", "truncated.jpg", "truncated.png", "text.png", "notes.txt", "dead.png", "tiny.png",
    }  # fmt: skip
    assert "truncated" in reasons["truncated.jpg"].lower()
    assert reasons["empty.png"] == "empty file"
    table = pd.read_csv(tmp_path / "out" / "images.csv")
    assert len(table) == 12 + 6
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "has 2 frames" in html
    assert "more than 8 bits" in html
    assert "tiny.png" in html


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no Unicode")
def test_names_that_are_no_unicode(folder: Path, small_backbone: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"b/\xff.png")
    (folder / "b" / "odd.png").rename(folder / name)
    report(
        folder, tmp_path / "out", small_backbone, LAYERS, image_size=64, suspicious=0.1, write_list=tmp_path / "list"
    )
    assert (tmp_path / "list").read_bytes() == os.fsencode(folder / name) + b"\n"
    assert b"\xff.png" in (tmp_path / "out" / "images.csv").read_bytes()


def test_image_is_read_as_anomalib_reads_it(folder: Path) -> None:
    from anomalib.data.utils import read_image as read_with_anomalib

    for path in (folder / "b" / "odd.png", folder / "b" / "0.jpg"):
        tensor, remark = read_image(path)
        assert torch.equal(tensor, read_with_anomalib(path, as_tensor=True))
        assert remark == ""


def test_unreadable_subfolder_is_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images, skipped = find_images(folder)
    assert len(images) == 6
    assert skipped == [(str(folder / "b"), "folder cannot be read: Permission denied")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": "absent"}, "is not a folder"),
        ({"folder": "empty"}, "has no images"),
        ({"folder": "one"}, "has 1 readable images"),
        ({"discriminators": ["lof", "magic"]}, "magic"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"suspicious": -0.1}, "suspicious=-0.1"),
        ({"output": "images/out"}, "in which nothing is changed"),
        ({"copy_rest": "images"}, "in which nothing is changed"),
        ({"copy_rest": "one"}, "is not empty"),
    ],
)
def test_bad_input(
    folder: Path, small_backbone: str, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "one" / "image.png")
    paths = {
        name: tmp_path / str(value) for name, value in arguments.items() if name in {"folder", "output", "copy_rest"}
    }
    options = {"folder": folder, "output": tmp_path / "out"} | arguments | paths
    with pytest.raises(ValueError, match=message):
        report(backbone=small_backbone, layers=LAYERS, image_size=64, **options)
    assert not (tmp_path / "out").exists()


def test_command_line_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["report", str(tmp_path)])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("anomalib-softpatch report: folder=")
