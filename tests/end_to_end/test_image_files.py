# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The commands with image files from practice: rotated by EXIF, of 10 to 16 bits, floating-point, and links."""

import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomalib_softpatch.cleaning.command import clean_train
from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.models import load_model
from anomalib_softpatch.predictions.verification import verify
from anomalib_softpatch.report.command import report
from anomalib_softpatch.report.decisions import undo
from anomalib_softpatch.scoring.command import predict
from samples import save_random_weights

HEIGHT, WIDTH = 64, 96
SQUARE = (slice(8, 24), slice(64, 88))  # black in the image of a defect, as it is displayed
DEFECT = 5
WHITE = 4095  # the largest value of a 12-bit camera
# How to store pixels that are displayed upright: the inverse of the transpose that EXIF asks for
STORED = {
    1: lambda pixels: pixels,
    3: lambda pixels: np.rot90(pixels, 2),
    6: np.rot90,
    8: lambda pixels: np.rot90(pixels, -1),
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Return options of a backbone with random weights, enough to distinguish a black square from gray noise."""
    backbone = save_random_weights(tmp_path_factory.mktemp("weights"))
    return {"extraction": Extraction(backbone, ["layer2"], 64, device="cpu")}


def draw(count: int = 12) -> np.ndarray:
    """Draw gray images of 12 bits, one of which has a black square."""
    pixels = np.random.default_rng(0).integers(1800, 2300, (count, HEIGHT, WIDTH), dtype=np.uint16)
    pixels[:, 0, 0] = 3000
    pixels[DEFECT][SQUARE] = 0
    return pixels


def save(pixels: np.ndarray, file: Path, orientation: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif)
    return file


def scores(output: Path) -> dict[str, float]:
    table = pd.read_csv(output / "images.csv")
    return {Path(path).stem: score for path, score in zip(table["path"], table["image_score"], strict=True)}


def boxes(output: Path) -> dict[str, list[list[float]]]:
    """Return the boxes of the COCO export by image, after checking that the other formats have the same."""
    content = json.loads((output / "coco.json").read_text())
    names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    sizes = {names[image["id"]]: (image["width"], image["height"]) for image in content["images"]}
    found: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        found[names[annotation["image_id"]]].append(annotation["bbox"])
    for sample in json.loads((output / "fiftyone.json").read_text())["samples"]:
        name = Path(sample["filepath"]).stem
        shares = [each["bounding_box"] for each in sample["suspicious_regions"]["detections"]]
        assert (sample["metadata"]["width"], sample["metadata"]["height"]) == sizes[name]
        assert np.allclose(np.reshape(shares, (-1, 4)) * (2 * sizes[name]), np.reshape(found[name], (-1, 4)))
    for task in json.loads((output / "label_studio.json").read_text()):
        name = Path(unquote(task["data"]["image"])).stem
        for result, box in zip(task["predictions"][0]["result"], found[name], strict=True):
            assert (result["original_width"], result["original_height"]) == sizes[name]
            assert result["value"]["x"] / 100 * sizes[name][0] == pytest.approx(box[0])
            assert result["value"]["y"] / 100 * sizes[name][1] == pytest.approx(box[1])
    return found


def test_report_shows_images_as_they_are_displayed(options: dict, tmp_path: Path) -> None:
    """Scores, boxes and thumbnails of rotated images are those of the upright ones."""
    found = {}
    for kind in ("upright", "turned"):
        for number, pixels in enumerate((draw() // 16).astype(np.uint8)):
            orientation = list(STORED)[number % len(STORED)] if kind == "turned" else 1
            save(STORED[orientation](pixels), tmp_path / kind / f"{number}.png", orientation)
        output = tmp_path / f"report of {kind}"
        report(tmp_path / kind, output, **options, export=["coco", "fiftyone", "label_studio"])
        drawings = {file.name: np.asarray(Image.open(file)) for file in (output / "thumbnails").iterdir()}
        found[kind] = scores(output), boxes(output), drawings
    assert found["turned"][:2] == found["upright"][:2]
    assert found["turned"][2].keys() == found["upright"][2].keys()
    for name, drawn in found["upright"][2].items():
        assert np.array_equal(found["turned"][2][name], drawn), name
    assert max(found["turned"][0], key=found["turned"][0].get) == str(DEFECT)
    left, top, width, height = found["turned"][1][str(DEFECT)][0]
    rows, columns = SQUARE
    assert columns.start <= left + width / 2 <= columns.stop
    assert rows.start <= top + height / 2 <= rows.stop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with images of a 12-bit camera, some of them rotated, and files whose values are unclear."""
    folder = tmp_path_factory.mktemp("deep") / "images"
    for number, pixels in enumerate(draw()):
        orientation = list(STORED)[number % len(STORED)]
        save(STORED[orientation](pixels), folder / f"{number}.png", orientation)
    Image.fromarray(np.full((HEIGHT, WIDTH), 7e4, dtype=np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((HEIGHT, WIDTH), 70_000, dtype=np.int32)).save(folder / "long.tif")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, options: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "output"
    clean_train(folder, output, **options, export="onnx")
    return output


def test_deep_images_are_read_by_their_bits(
    folder: Path, options: dict, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are read like floating-point images of the same values, and one message reports it."""
    floats = tmp_path / "floats"
    floats.mkdir()
    for number, pixels in enumerate(draw()):
        Image.fromarray((pixels / WHITE).astype(np.float32)).save(floats / f"{number}.tif")
    report(folder, tmp_path / "of 12 bits", **options)
    assert capfd.readouterr().err.count("12 images read with 12 bits per value, where white is 4095") == 1
    report(floats, tmp_path / "of floats", **options)
    expected = scores(tmp_path / "of floats")
    assert scores(tmp_path / "of 12 bits") == pytest.approx(expected, abs=1e-4)
    assert max(expected, key=expected.get) == str(DEFECT)
    with Image.open(tmp_path / "of 12 bits" / "thumbnails" / "00012.jpg") as image:
        middle = np.asarray(image.convert("L"))[112, 112]
    assert abs(int(middle) - 255 * 2050 / WHITE) < 12
    page = (tmp_path / "of 12 bits" / "report.html").read_text(encoding="utf-8")
    assert "12 bits per value, where white is 4095" in page


def test_images_of_unknown_meaning_are_set_aside(folder: Path, trained: Path) -> None:
    table = pd.read_csv(trained / "set_aside.csv")
    reasons = {Path(path).name: reason for path, reason in zip(table["path"], table["reason"], strict=True)}
    assert reasons.keys() == {"float.tif", "long.tif"}
    assert "70000; floating-point values must be in [0, 1]" in reasons["float.tif"]
    assert "70000; whole numbers must be from 0 to 4095, 12 bits" in reasons["long.tif"]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["trained_on"] == 12
    assert summary["largest_value"] == WHITE
    assert load_model(trained / "model.ckpt").largest_value == WHITE


def test_single_images_are_read_as_in_the_fit(folder: Path, trained: Path, tmp_path: Path) -> None:
    """Checkpoint and exported file give the score of a floating-point image that NumPy has divided."""
    import onnxruntime

    new = draw(13)[-1] // 2  # a darker image stays darker, whatever its own largest value
    save(STORED[6](new), tmp_path / "new" / "deep.png", 6)
    Image.fromarray((new / WHITE).astype(np.float32)).save(tmp_path / "new" / "float.tif")
    save(draw(13)[-1], tmp_path / "new" / "bright.png")
    tables = {}
    for name in ("model.ckpt", "model.onnx"):
        source = {"ckpt_path": trained / name, "device": "cpu"} if name == "model.ckpt" else {"model": trained / name}
        predict(tmp_path / "new", output=tmp_path / f"{name}.csv", **source)
        table = pd.read_csv(tmp_path / f"{name}.csv")
        tables[name] = table.assign(path=[Path(path).name for path in table["path"]]).set_index("path")
    session = onnxruntime.InferenceSession(str(trained / "model.onnx"), providers=["CPUExecutionProvider"])
    image = np.stack([new / WHITE] * 3)[None].astype(np.float32)
    (expected,) = session.run(["pred_score"], {session.get_inputs()[0].name: image})
    for table in tables.values():
        for name in ("deep.png", "float.tif"):
            assert table.loc[name, "score"] == pytest.approx(float(expected.squeeze()), abs=1e-4)
        assert table.loc["deep.png", ["x", "y"]].tolist() == table.loc["float.tif", ["x", "y"]].tolist()
        assert abs(table.loc["bright.png", "score"] - table.loc["deep.png", "score"]) > 1e-3
    verify(trained / "model.onnx", folder)


def test_the_place_of_a_defect_is_where_it_is_displayed(folder: Path, trained: Path, tmp_path: Path) -> None:
    defect = draw()[DEFECT]
    rows, columns = SQUARE
    for orientation, store in STORED.items():
        file = save(store(defect), tmp_path / f"{orientation}.png", orientation)
        predict(file, model=trained / "model.onnx", output=tmp_path / f"{orientation}.csv")
        row = pd.read_csv(tmp_path / f"{orientation}.csv").iloc[0]
        assert columns.start <= row["x"] < columns.stop
        assert rows.start <= row["y"] < rows.stop


@pytest.mark.parametrize("name", ["model.ckpt", "model.onnx"])
def test_images_of_another_camera_are_not_scored(name: str, trained: Path, tmp_path: Path) -> None:
    file = save(draw()[0] * 16, tmp_path / "deeper.png")
    source = {"ckpt_path": trained / name, "device": "cpu"} if name == "model.ckpt" else {"model": trained / name}
    with pytest.raises(SystemExit) as status:
        predict(file, output=tmp_path / "predictions.csv", **source)
    assert status.value.code == 3
    row = pd.read_csv(tmp_path / "predictions.csv").iloc[0]
    assert row["verdict"] == "unreadable"
    assert "to 48000; whole numbers must be from 0 to 4095, 12 bits as in the training images" in row["reason"]


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """Make a folder with links to one of its images, to an image elsewhere, and to a folder."""
    pixels = (draw() // 16).astype(np.uint8)
    for number, one in enumerate(pixels):
        save(one, tmp_path / "images" / "sub" / f"{number}.png")
    save(pixels[0] // 2 + 60, tmp_path / "elsewhere" / "other.png")
    (tmp_path / "images" / "a.png").symlink_to("sub/3.png")
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "c.png").symlink_to("../elsewhere/other.png")
    (tmp_path / "images" / "linked").symlink_to("../elsewhere", target_is_directory=True)
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return the target of each link, and the content of each file, also through links."""
    return {
        path.relative_to(folder).as_posix(): (str(path.readlink()) if path.is_symlink() else "", path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_links_are_moved_and_no_image_is_lost(
    links: Path, options: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two links to an image are set aside, and lead to it from their new place. Undo restores everything."""
    before, target = contents(links), tmp_path / "aside" / "here"
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(f"path,decision\n{links / 'c.png'},set_aside\n{links / 'b.png'},keep\n")
    clean_train(links, tmp_path / "output", **options, decisions=decisions, move_to=target)
    printed = capsys.readouterr().out
    assert f"1 link to a folder is not followed: {links / 'linked'}" in printed
    assert "set aside 3 images" in printed
    assert "links: 2" in printed
    after = contents(links)
    assert before.keys() - after.keys() == {"a.png", "b.png", "c.png"}
    for name in ("a.png", "b.png", "c.png"):
        assert (target / name).is_symlink()
        assert (target / name).read_bytes() == before[name][1]
    assert (tmp_path / "elsewhere" / "other.png").is_file()
    undo(target / "moved.csv", dry_run=False)
    assert contents(links) == before


def test_links_go_with_an_image_that_is_moved(links: Path, options: dict, tmp_path: Path) -> None:
    before, target = contents(links), tmp_path / "aside"
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(f"path,decision\n{links / 'sub' / '3.png'},set_aside\n")
    clean_train(links, tmp_path / "output", **options, decisions=decisions, move_to=target)
    assert before.keys() - contents(links).keys() == {"a.png", "b.png", "sub/3.png"}
    for name in ("a.png", "b.png", "sub/3.png"):
        assert (target / name).read_bytes() == before[name][1]
        assert (target / name).resolve() == target / "sub" / "3.png"
    undo(target / "moved.csv", dry_run=False)
    assert contents(links) == before


def test_predict_and_report_name_links_to_folders(
    links: Path, options: dict, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(links, tmp_path / "report", **options)
    assert f"1 link to a folder is not followed: {links / 'linked'}" in capsys.readouterr().out
    assert "link to a folder, which is not followed" in (tmp_path / "report" / "skipped.csv").read_text()
    with pytest.raises(SystemExit) as status:
        predict(links, model=trained / "model.onnx", output=tmp_path / "predictions.csv")
    assert status.value.code == 3
    table = pd.read_csv(tmp_path / "predictions.csv").set_index("path")
    assert table.loc[str(links / "linked"), "reason"] == "link to a folder, which is not followed"
    assert len(table) == 12 + 3 + 1
