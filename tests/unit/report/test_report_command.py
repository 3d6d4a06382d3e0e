# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command `anomalib-softpatch report` on folders that occur in practice."""

import html
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory as Folder
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2.functional import normalize, resize

from anomalib_softpatch.cli import main
from anomalib_softpatch.components import PatchFeatureExtractor, progress
from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.images.finding import IMAGE_EXTENSIONS, find_images
from anomalib_softpatch.images.paths import from_text, to_text
from anomalib_softpatch.images.reading import read_image
from anomalib_softpatch.report import page, ranking, writer
from anomalib_softpatch.report.command import report
from anomalib_softpatch.report.ranking import rank_images
from samples import save_random_weights

LAYERS = ["layer2"]


@pytest.fixture(scope="module")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Backbone with random weights on disk: ranking a black square among gray noise needs no more."""
    return save_random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve gray images in two folders, one of them with a black square: `b/odd.png`."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for name in [*(f"a/{index}.png" for index in range(6)), *(f"b/{index}.jpg" for index in range(5)), "b/odd.png"]:
        pixels = rng.integers(120, 136, (48, 64, 3), dtype=np.uint8)
        if "odd" in name:
            pixels[16:32, 16:32] = 0
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def with_extraction(options: dict[str, object]) -> dict[str, object]:
    """Convert options of the command line to arguments of the function."""
    own = {each.name for each in fields(Extraction)} & options.keys()
    rest = {name: value for name, value in options.items() if name not in own}
    return rest | {"extraction": Extraction(**{name: options[name] for name in own})}


def contents(folder: Path) -> dict[str, tuple[bytes, float]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in files}


def test_ranks_copies_and_lists_without_touching_the_folder(
    folder: Path,
    small_backbone: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0)  # twelve images take no time
    before = contents(folder)
    report(
        folder,
        tmp_path / "out",
        Extraction(small_backbone, LAYERS, 64),
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


@pytest.mark.parametrize(("min_images", "nearest"), [("auto", 2), (1, 1), (5, 4), (0.5, 5)])
def test_min_images_must_show_something(
    min_images: float | str, nearest: int, folder: Path, small_backbone: str
) -> None:
    """Scores are the distances to the image of that rank, computed by NumPy; half of twelve images are six."""
    options = {"backbone": small_backbone, "layers": LAYERS, "neighborhood": 0, "image_size": 64}
    found = rank_images(folder, min_images=min_images, **options)
    extractor = PatchFeatureExtractor(small_backbone, LAYERS).eval()
    images = torch.stack([torch.from_numpy(read_image(path)[0]) for path in found.paths])
    images = resize(images, [64, 64], antialias=True)
    with torch.no_grad():
        features = extractor(normalize(images, ranking.MEAN, ranking.STANDARD_DEVIATION)).double().numpy()
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    expected = np.sort(distances, axis=1)[:, nearest]  # the first one is the image itself
    np.testing.assert_allclose(found.scores.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_broken_and_odd_files_are_listed(folder: Path, small_backbone: str, tmp_path: Path) -> None:
    whole = (folder / "b" / "0.jpg").read_bytes()
    (folder / "empty.png").touch()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.png").write_bytes((folder / "a" / "0.png").read_bytes()[:2000])
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("not an image either")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    (folder / "folder.png").mkdir()
    Image.new("RGB", (3, 2)).save(folder / "tiny.png")
    readable = {"gray": Image.new("L", (64, 48), 128), "cmyk": Image.new("CMYK", (64, 48))}
    readable["palette"] = Image.new("P", (40, 40))
    readable["alpha"] = Image.new("RGBA", (64, 48), (128, 128, 128, 40))
    readable["deep"] = Image.fromarray(np.full((48, 64), 30_000, dtype=np.uint16))
    for name, image in readable.items():
        image.save(folder / f"{name}.tif" if name == "cmyk" else folder / f"{name}.png")
    frames = [Image.new("L", (64, 48), value) for value in (0, 255)]
    frames[0].save(folder / "frames.tiff", save_all=True, append_images=frames[1:])
    report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS, 64))
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
    assert "1, read with 16 bits per value, where white is 65535" in html
    assert "tiny.png" in html


@pytest.mark.skipif(sys.platform != "linux", reason="other systems only allow names in Unicode")
def test_names_that_are_not_unicode(folder: Path, small_backbone: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"b/\xff.png")
    (folder / "b" / "odd.png").rename(folder / name)
    report(
        folder, tmp_path / "out", Extraction(small_backbone, LAYERS, 64), suspicious=0.1, write_list=tmp_path / "list"
    )
    assert (tmp_path / "list").read_bytes() == os.fsencode(folder / name) + b"\n"
    assert b"\xff.png" in (tmp_path / "out" / "images.csv").read_bytes()


def test_image_is_read_as_anomalib_reads_it(folder: Path) -> None:
    from anomalib.data.utils import read_image as read_with_anomalib

    for path in (folder / "b" / "odd.png", folder / "b" / "0.jpg"):
        image, remark = read_image(path)
        assert torch.equal(torch.from_numpy(image), read_with_anomalib(path, as_tensor=True))
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
        ({"output": "images/out"}, "where nothing may change"),
        ({"copy_rest": "images"}, "where nothing may change"),
        ({"copy_rest": "one"}, "is not empty"),
        ({"write_list": "images/list.txt"}, "where nothing may change"),
        ({"feature_cache": "images/cache"}, "where nothing may change"),
        ({"lof_k": 0}, "lof_k=0 must be a whole number of 1 or more"),
        ({"image_size": 0}, "image_size=0 must be a whole number of 32 or more"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"neighborhood": -1}, "neighborhood=-1"),
        ({"min_images": 1.5}, "min_images=1.5 must be 'auto', a number of images of at least 1"),
        ({"layers": []}, "layers must name"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
        ({"device": "abacus"}, "device='abacus' cannot be used here"),
        ({"backbone": "resnet1o"}, r"backbone='resnet1o' is not a model of timm .* Similar names: .*resnet1"),
        ({"backbone": "local-dir:/nowhere"}, "there is no config.json in that folder"),
    ],
)
def test_bad_input(
    folder: Path, small_backbone: str, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "one" / "image.png")
    paths = {
        name: tmp_path / str(value)
        for name, value in arguments.items()
        if name in {"folder", "output", "copy_rest", "write_list", "feature_cache"}
    }
    defaults = {"folder": folder, "output": tmp_path / "out", "backbone": small_backbone, "layers": LAYERS}
    with pytest.raises(ValueError, match=message) as error:
        report(**with_extraction(defaults | {"image_size": 64} | arguments | paths))
    assert str(error.value).count("\n") <= 5  # the first reasons why images cannot be read, if there are any
    assert not (tmp_path / "out").exists()


def test_bad_options_are_refused_before_an_image_is_read(
    folder: Path, small_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "read_image", lambda path: pytest.fail(f"{path} was read"))
    for options in ({"lof_k": 0}, {"image_size": 0}, {"device": "cuda:99"}, {"backbone": "resnet1o"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            report(
                folder, tmp_path / "out", **with_extraction({"backbone": small_backbone, "layers": LAYERS} | options)
            )
    for output in (tmp_path / "list.txt" / "out", Path("/proc/out")):
        (tmp_path / "list.txt").touch()
        with pytest.raises(OSError, match="cannot be written to"):
            report(folder, output, Extraction(small_backbone, LAYERS))


@pytest.mark.parametrize("name", ["report.html", "images.csv", "skipped.csv", "summary.json", "thumbnails"])
def test_files_of_others_are_not_overwritten(
    folder: Path, small_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(ranking, "read_image", lambda path: pytest.fail(f"{path} was read"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("<!doctype html><title>Mine</title>\nrank,name\n")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=f"{name}' exists and is not part of a noise report"):
        report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS))
    assert contents(tmp_path / "out") == before


def test_copies_in_another_folder_are_reported(
    folder: Path, small_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exact copy in another format and a near copy with added noise appear in page, summary and terminal."""
    other = tmp_path / "other"
    other.mkdir()
    rng = np.random.default_rng(1)
    for number in range(10):
        Image.fromarray(rng.integers(120, 136, (48, 64, 3), dtype=np.uint8)).save(other / f"new{number}.png")
    Image.open(folder / "a" / "1.png").save(other / "same.bmp")
    near = np.asarray(Image.open(folder / "a" / "2.png")) + rng.integers(0, 2, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(near).save(other / "near & far.png")
    (other / "broken.png").touch()
    (other / "notes.txt").touch()
    report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS, 64), against=other)
    line = (
        f"2 of 12 images in {other} (2 files not looked at) are copies of images in this set (1 exact, 1 near). Remove "
        "them from one of the two sets; otherwise a test overrates the model."
    )
    assert line in capsys.readouterr().out.splitlines()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["skipped"], summary["duplicate_groups"]) == (12, 0, 0)
    assert summary["other_folder"]["copies"] == [
        {"path": str(other / "near & far.png"), "copy_of": str(folder / "a" / "2.png"), "exact": False},
        {"path": str(other / "same.bmp"), "copy_of": str(folder / "a" / "1.png"), "exact": True},
    ]
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert line in page
    assert f"<td>{other / 'near & far.png'}</td><td>near copy of {folder / 'a' / '2.png'}</td>" in page
    assert "broken.png" not in (tmp_path / "out" / "skipped.csv").read_text()

    (other / "same.bmp").unlink()
    (other / "near & far.png").unlink()
    report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS, 64), against=other)
    assert f"None of 10 images in {other} (2 files not looked at) is a copy" in capsys.readouterr().out
    report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS, 64))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["other_folder"] is None
    for wrong in (folder, folder / "a", tmp_path):
        with pytest.raises(ValueError, match="contains the other"):
            report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS), against=wrong)
    with pytest.raises(ValueError, match="is not a folder"):
        report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS), against=tmp_path / "absent")


def test_own_report_is_replaced(folder: Path, small_backbone: str, tmp_path: Path) -> None:
    for _ in range(2):
        report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS, 64))
        (folder / "a" / "0.png").unlink(missing_ok=True)
    assert len(pd.read_csv(tmp_path / "out" / "images.csv")) == 11
    thumbnails = [file.stem for file in (tmp_path / "out" / "thumbnails").iterdir()]
    assert len([name for name in thumbnails if name.isdigit()]) == 11
    assert {name.partition("_")[2] for name in thumbnails} <= {"", "nearest", "copy"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_with_line_breaks_and_formulas(
    folder: Path, small_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b/line\nbreak.png", "=HYPERLINK(1).png", "+cmd.png", "b/100%#?.png"]
    for name in names:
        (folder / name).write_bytes((folder / "a" / "1.png").read_bytes())
    (folder / "b" / "odd.png").rename(folder / names[0])
    (folder / "@text.txt").touch()
    monkeypatch.chdir(folder)
    report(Path(), tmp_path / "out", Extraction(small_backbone, LAYERS, 64), suspicious=0.07,
           write_list=tmp_path / "list")  # fmt: skip
    table = pd.read_csv(tmp_path / "out" / "images.csv")
    assert {f"./{name}" for name in names[1:3]} | {names[0], names[3]} <= set(table["path"])
    assert all(Path(path).is_file() for path in table["path"])
    assert not any(path.startswith(tuple("=+-@")) for path in table["path"])
    assert pd.read_csv(tmp_path / "out" / "skipped.csv")["path"].tolist() == ["./@text.txt"]
    line = (tmp_path / "list").read_text().splitlines()
    assert line == [(folder / names[0]).as_uri()]
    assert from_text(line[0]) == folder / names[0]
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    links = [unquote(link) for link in re.findall(r'data-link="([^"]*)"', html)]
    assert {Path(os.path.realpath(tmp_path / "out" / link)) for link in links} == {
        Path(os.path.realpath(path)) for path in table["path"]
    }


def test_extensions_are_those_of_anomalib() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMAGE_EXTENSIONS) == set(IMG_EXTENSIONS)


def test_rank_images_takes_paths_and_returns_a_table(folder: Path, small_backbone: str) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    findings = rank_images([str(path) for path in paths], backbone=small_backbone, layers=LAYERS, image_size=64)
    assert findings.table["path"].iloc[0] == str(folder / "b" / "odd.png")
    assert findings.table.equals(rank_images(folder, backbone=small_backbone, layers=LAYERS, image_size=64).table)


def test_cached_features_are_reused(
    folder: Path, small_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"backbone": small_backbone, "layers": LAYERS, "image_size": 64}
    expected = rank_images(folder, **options, threshold=0.4)
    rank_images(folder, **options, feature_cache=tmp_path / "cache")
    monkeypatch.setattr(PatchFeatureExtractor, "_extract", lambda *_: pytest.fail("the backbone was run"))
    again = rank_images(folder, **options, threshold=0.4, feature_cache=tmp_path / "cache")
    assert again.table.equals(expected.table)
    assert torch.equal(again.scores, expected.scores)


def test_a_page_has_no_more_images_than_a_browser_can_show(
    folder: Path, small_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_SHOWN", 5)
    monkeypatch.setattr(writer, "MOST_SHOWN", 5)
    report(folder, tmp_path / "out", Extraction(small_backbone, LAYERS, 64))
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "shows the 5 most suspicious images" in text
    assert "<b>12</b>images looked at" in text
    drawn = [file for file in (tmp_path / "out" / "thumbnails").iterdir() if file.stem.isdigit()]
    assert len(drawn) == text.count("<figure") == 5
    # The others are in the decisions that the page saves
    (others,) = re.findall(r'id="not-shown">(.*?)</script>', text)
    paths = pd.read_csv(tmp_path / "out" / "images.csv")["path"]
    assert [to_text(path) for path in paths[5:]] == json.loads(others)
    assert "odd.png" in text
    assert len(pd.read_csv(tmp_path / "out" / "images.csv")) == 12


def test_features_beyond_the_budget_are_on_disk(
    folder: Path, small_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image is a copy, so that the features of the others are selected on disk."""
    shutil.copyfile(folder / "a" / "0.png", folder / "a" / "copy.png")
    options = {"backbone": small_backbone, "layers": LAYERS, "image_size": 64, "batch_size": 4}
    expected = rank_images(folder, **options)
    made = []
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda *_, **__: made.append(Folder(dir=tmp_path)) or made[-1])
    monkeypatch.setattr(ranking, "default_memory_budget", lambda: 0.0)
    assert rank_images(folder, **options).table.equals(expected.table)
    assert len(made) == 1


def test_a_copied_defect_stays_where_it_was(folder: Path, small_backbone: str, tmp_path: Path) -> None:
    options = {"backbone": small_backbone, "layers": LAYERS, "image_size": 64}
    before = rank_images(folder, **options)
    for number in range(3):
        (folder / "a" / f"copy{number}.png").write_bytes((folder / "b" / "odd.png").read_bytes())
    after = rank_images(folder, **options)
    names = [Path(path).name for path in after.table["path"]]
    assert sorted(names[:4]) == ["copy0.png", "copy1.png", "copy2.png", "odd.png"]
    assert after.table["duplicate_group"].tolist()[:4] == [1] * 4
    assert after.table["duplicate_group"].isna().sum() == 11
    # The other scores are unchanged, because copies have one vote
    scores = before.table.set_index("path")["image_score"]
    for path, score in after.table.set_index("path")["image_score"].items():
        if path in scores:
            assert score == pytest.approx(scores[path], abs=1e-4)


def test_copying_all_defects_does_not_change_what_is_found(kolektor: Path, backbone: str, tmp_path: Path) -> None:
    normal = sorted((kolektor / "kolektor" / "train" / "good").glob("*.png"))[:30]
    defects = sorted((kolektor / "kolektor" / "test" / "defect").glob("*.png"))[:12]
    options = {"backbone": backbone, "layers": ["blocks.2", "blocks.4"], "feature_cache": tmp_path / "cache"}

    def auroc(paths: list[Path]) -> float:
        table = rank_images(paths, **options).table
        return roc_auc_score(table["path"].str.contains("defect"), table["image_score"])

    (tmp_path / "defect").mkdir()
    copies = []
    for number, path in enumerate(defects):
        copies.append(tmp_path / "defect" / f"{path.stem}.{('png', 'jpg')[number % 2]}")
        Image.open(path).save(copies[-1], **({"quality": 85} if number % 2 else {}))
    assert auroc([*normal, *defects, *copies]) == pytest.approx(auroc([*normal, *defects]), abs=0.03)


def test_odd_images_are_named(folder: Path, small_backbone: str) -> None:
    Image.new("RGB", (64, 48), "black").save(folder / "black.png")
    Image.new("RGB", (64, 96)).save(folder / "tall.png")
    table = rank_images(folder, backbone=small_backbone, layers=LAYERS, image_size=64).table
    odd = {Path(path).name: names.split("; ") for path, names in zip(table["path"], table["findings"], strict=True)}
    assert {"dark", "low information"} <= set(odd["black.png"])
    assert {"odd size", "odd aspect"} <= set(odd["tall.png"])


def test_command_line_reports_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["report", str(tmp_path)])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("anomalib-softpatch report: folder=")


REFUSAL = """
import sys
from anomalib_softpatch.cli import main
try:
    main(["report", *sys.argv[1:]])
except SystemExit as error:
    print(error.code, sorted({"torch", "anomalib", "timm", "pandas", "matplotlib"} & sys.modules.keys()))
"""


def test_wrong_folder_is_refused_before_anything_slow_is_imported(tmp_path: Path, run_python: Callable) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (("nowhere", "is not a folder"), ("empty", "has no images")):
        result = run_python("-c", REFUSAL, tmp_path / folder, cwd=tmp_path)
        assert message in result.stderr
        assert result.stdout.split(maxsplit=1) == ["2", "[]\n"]
