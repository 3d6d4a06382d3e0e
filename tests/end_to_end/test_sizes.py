# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images that are not square, whole and in tiles: all commands use the same size, score and peak."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomalib_softpatch.cli import main
from anomalib_softpatch.models import load_model
from anomalib_softpatch.report.ranking import rank_images
from samples import save_random_weights

HEIGHT, WIDTH = 120, 300
DEFECT = (slice(40, 64), slice(230, 254))  # rows and columns, black in one of the images
GOOD = 10
# Options, and the resulting size and grid of patches of 8 x 8 pixels
WAYS = {
    "default": ([], (160, 400), (20, 50)),
    "given": (["--image_size", "96", "224"], (96, 224), (12, 28)),
    "square": (["--image_size", "96"], (96, 96), (12, 12)),
    "tiles": (["--tile", "64", "--stride", "48"], (HEIGHT, WIDTH), (15, 38)),
    "resized tiles": (["--tile", "64", "96", "--image_size", "112", "288"], (112, 288), (14, 36)),
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return options of a backbone with random weights, enough to distinguish a black square from gray noise."""
    backbone = save_random_weights(tmp_path_factory.mktemp("weights"))
    return ["--backbone", backbone, "--layers", "[layer2]", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "unsorted"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*map(str, range(GOOD)), "defect"]:
        pixels = rng.integers(100, 156, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        if name == "defect":
            pixels[DEFECT] = 0
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def is_inside(x: float, y: float) -> bool:
    rows, columns = DEFECT
    return rows.start <= y < rows.stop and columns.start <= x < columns.stop


@pytest.mark.parametrize("way", WAYS)
def test_report(way, folder, options, tmp_path, capsys):
    """Scores are on the grid of the whole image, and the box is around the defect, in the image's own pixels."""
    given, _, grid = WAYS[way]
    main(["report", str(folder), *options, "--output", str(tmp_path / "out"), "--export", "coco", *given])
    assert ("may vanish" in capsys.readouterr().err) == (way == "square")  # its width is a third of the image
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    (defect,) = [image for image in content["images"] if image["file_name"] == "defect.png"]
    assert defect["rank"] == 1
    boxes = [box for box in content["annotations"] if box["image_id"] == defect["id"]]
    left, top, width, height = max(boxes, key=lambda box: box["score"])["bbox"]
    assert is_inside(left + width / 2, top + height / 2)
    assert max(width / WIDTH * grid[1], height / HEIGHT * grid[0]) <= 12


@pytest.mark.parametrize("way", ["default", "given", "tiles"])
def test_clean_train_and_predict(way, folder, options, tmp_path):
    """`test_same_answer.py` tests an exported file with tiles, on images that are not square."""
    given, size, grid = WAYS[way]
    output = tmp_path / "out"
    main(["clean-train", str(folder), *options, "--output", str(output), "--export", "none", *given,
          "--coreset_sampling_ratio", "0.02"])  # fmt: skip
    summary = json.loads((output / "summary.json").read_text())
    assert tuple(summary["image_size"]) == size
    assert (summary["tiles"] is not None) == ("--tile" in given)

    model = load_model(output / "model.ckpt").eval()
    assert model.input_size == size
    assert model.model.extract(torch.zeros(1, 3, *size)).shape[1:3] == grid

    file = tmp_path / "predictions.csv"
    main(["predict", str(folder), "--ckpt_path", str(output / "model.ckpt"), "--output", str(file)])
    table = pd.read_csv(file).set_index("path")
    assert table["score"].idxmax() == str(folder / "defect.png")
    row = table.loc[str(folder / "defect.png")]
    assert row["verdict"] == "anomalous"
    assert is_inside(row["x"], row["y"])


def test_report_and_model_see_the_same(folder, options, tmp_path):
    """The features are computed once for both, also with tiles."""
    output = tmp_path / "out"
    main(["clean-train", str(folder), *options, "--output", str(output), "--tile", "64"])
    assert len([*output.glob("features/*/*.safetensors")]) == (GOOD + 1) * 2 * 5


def test_lost_detail_of_large_images_is_reported(folder, options, tmp_path, capsys):
    """The report's page has the message, too."""
    main(["report", str(folder), *options, "--output", str(tmp_path / "out"), "--image_size", "48", "96"])
    line = "Images of 120 x 300 pixels (height x width) are resized to 48 x 96, 2.5 and 3.1 times smaller"
    assert line in capsys.readouterr().err
    assert line in (tmp_path / "out" / "report.html").read_text()


def test_python_has_the_same_default(folder, options):
    findings = rank_images(folder, backbone=options[1], layers=["layer2"])
    assert findings.scores.shape[1:] == WAYS["default"][2]
    assert findings.settings["Image size"] == "160 x 400 pixels (height x width)"
    assert Path(findings.paths[findings.order[0]]).name == "defect.png"


@pytest.mark.parametrize("command", ["report", "clean-train"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--image_size", "16"], "image_size=16 must be a whole number of 32 or more"),
        (["--image_size", "64", "64", "64"], "must be one number of pixels, or two: height and width"),
        (["--image_size", "96x224"], "image_size=96x224 must be one number of pixels, or two: height and width"),
        (["--stride", "48"], "stride=48 needs tiles"),
        (["--tile", "64", "--stride", "65"], "leaves gaps between tiles"),
        (["--tile", "512"], "Tiles of 512 x 512 pixels do not fit into images of 120 x 300"),
        (["--tile", "64", "--stride", "36"], "do not line up with the backbone's grid: use multiples of 8"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(command, given, message, folder, options, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, str(folder), *options, "--output", str(tmp_path / "out"), *given])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
