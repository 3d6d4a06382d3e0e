# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Exports of the report, checked against the rules of the formats and the pixels of the images."""

import json
import os
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from skimage.measure import label, regionprops

from anomalib_softpatch.cli import main
from anomalib_softpatch.report.exports import EXPORTS, check_exports, exported_images, write_exports
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.geometry import Region
from anomalib_softpatch.report.suspicious_regions import suspicious_regions

GRID = (4, 6)
SIZE = (96, 64)
BLOCKS = {
    3: [(1, 2)],
    5: [(0, 0), (1, 1), (3, 5)],
}  # rows and columns of high scores; diagonal neighbors are connected
BOXES = {"003.png": {(32, 16, 16, 16)}, "005.png": {(0, 0, 32, 32), (80, 48, 16, 16)}}  # left, top, width, height


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """Sixty images, of which numbers 3 and 5 have patches that are rarer than all others."""
    scores = torch.rand(60, *GRID, generator=torch.Generator().manual_seed(0))
    for image, places in BLOCKS.items():
        for row, column in places:
            scores[image, row, column] += 5
    root = tmp_path / "set ü" / "sub"
    root.mkdir(parents=True)
    paths = [root / f"{index:03}.png" for index in range(len(scores))]
    for path in paths:
        Image.new("RGB", SIZE, "gray").save(path)
    oddities = [["dark"] if index == 3 else [] for index in range(len(scores))]
    findings = Findings(
        paths=list(map(str, paths)),
        scores=scores,
        kept=scores < 5,
        regions=[Region(0, 0, *SIZE)] * len(scores),
        groups=torch.arange(len(scores)),
        oddities=oddities,
    )
    # A limit that only the four patches exceed
    object.__setattr__(findings.noise_level, "score", findings.rarity.flatten().sort().values[-5].item())
    return findings


def load(findings: Findings, name: str, folder: Path) -> object:
    (file,) = write_exports(findings, [name], folder)
    assert file.name == f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def rounded(box: list[float]) -> tuple[int, ...]:
    assert box == pytest.approx([round(value) for value in box])
    return tuple(round(value) for value in box)


def test_regions_are_connected_components(findings: Findings) -> None:
    """Compared with scikit-image, with an offset and a border that is clipped."""
    covered = Region(-8, 4, 104, 84)
    moved = Findings(findings.paths, findings.scores, findings.kept, [covered] * 60)
    limit = 0.6  # which a quarter of the patches exceed
    object.__setattr__(moved.noise_level, "score", limit)
    seen = 0
    for index in range(60):
        expected = []
        for region in regionprops(label((moved.rarity[index] > limit).numpy(), connectivity=2)):
            top, left, bottom, right = region.bbox
            edges = np.array([left * 112 / 6 - 8, top * 20 + 4, right * 112 / 6 - 8, bottom * 20 + 4])
            left, top, right, bottom = np.clip(edges, 0, [96, 64, 96, 64])
            if left < right and top < bottom:
                expected.append((left, top, right, bottom))
        found = suspicious_regions(moved, index, SIZE)
        boxes = [(each.left, each.top, each.left + each.width, each.top + each.height) for each in found]
        assert len(expected) == len(boxes)
        assert np.allclose(sorted(expected), sorted(boxes))
        assert [each.rarity for each in found] == sorted((each.rarity for each in found), reverse=True)
        seen += len(found)
    assert seen > 60


def test_an_image_that_stands_out_has_a_region(findings: Findings) -> None:
    plain = Findings(findings.paths, findings.scores, findings.kept, findings.regions)
    outside = [index for index in range(60) if plain.image_scores[index] > plain.noise_level.score]
    assert outside
    assert all(suspicious_regions(plain, index, SIZE) for index in outside)


def test_coco_follows_the_format(findings: Findings, tmp_path: Path) -> None:
    dataset = load(findings, "coco", tmp_path / "out")
    assert {image["file_name"] for image in dataset["images"]} == {f"{index:03}.png" for index in range(60)}
    root = Path(dataset["info"]["folder"])
    for image in dataset["images"]:
        with Image.open(root / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
    ids = [annotation["id"] for annotation in dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    names = {image["id"]: image["file_name"] for image in dataset["images"]}
    boxes: dict[str, set[tuple[int, ...]]] = {}
    for annotation in dataset["annotations"]:
        assert annotation["category_id"] in {category["id"] for category in dataset["categories"]}
        assert annotation["area"] == pytest.approx(annotation["bbox"][2] * annotation["bbox"][3])
        boxes.setdefault(names[annotation["image_id"]], set()).add(rounded(annotation["bbox"]))
    assert boxes == BOXES
    scores = [image["score"] for image in dataset["images"]]
    assert scores == sorted(scores, reverse=True)


def test_coco_is_read_by_pycocotools(findings: Findings, tmp_path: Path) -> None:
    (file,) = write_exports(findings, ["coco"], tmp_path)
    dataset = COCO(str(file))
    names = {image["id"]: image["file_name"] for image in dataset.loadImgs(dataset.getImgIds())}
    found = {
        name: {rounded(each["bbox"]) for each in dataset.loadAnns(dataset.getAnnIds(imgIds=[number]))}
        for number, name in names.items()
    }
    assert {name: boxes for name, boxes in found.items() if boxes} == BOXES


def test_coco_file_names_lead_to_the_files_although_an_image_is_missing(findings: Findings, tmp_path: Path) -> None:
    """It was in the parent folder, which made that the common folder."""
    findings.paths[0] = str(Path(findings.paths[0]).parents[1] / "missing.png")
    dataset = load(findings, "coco", tmp_path / "out")
    assert len(dataset["images"]) == 59
    assert all((Path(dataset["info"]["folder"]) / image["file_name"]).is_file() for image in dataset["images"])


def test_label_studio_tasks_are_in_percent_and_lead_to_the_files(findings: Findings, tmp_path: Path) -> None:
    tasks = load(findings, "label_studio", tmp_path / "out")
    assert len(tasks) == 60
    boxes = {}
    for task in tasks:
        prefix, _, place = task["data"]["image"].partition("?d=")
        assert prefix == "/data/local-files/"
        path = tmp_path / "set ü" / unquote(place)  # the folder that holds the images' folder
        assert path.is_file()
        (prediction,) = task["predictions"]
        assert 0 <= prediction["score"] <= 1  # or Label Studio refuses it
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"], result["type"]) == ("region", "image", "rectanglelabels")
            value = result["value"]
            assert value["rectanglelabels"] == ["suspicious"]
            box = np.array([value[name] for name in ("x", "y", "width", "height")]) / 100 * np.array([*SIZE, *SIZE])
            boxes.setdefault(path.name, set()).add(rounded(box.tolist()))
            assert 0 < result["score"] < 1
            assert (result["original_width"], result["original_height"]) == SIZE
    assert boxes == BOXES
    assert tasks[0]["data"]["noise_rank"] == 1
    assert [task["data"]["image"][-7:] for task in tasks if task["data"]["findings"] == "dark"] == ["003.png"]


def test_fiftyone_samples_are_in_shares(findings: Findings, tmp_path: Path) -> None:
    dataset = load(findings, "fiftyone", tmp_path / "out")
    assert dataset["media_type"] == "image"
    boxes = {}
    for sample in dataset["samples"]:
        assert sample.keys() == dataset["sample_fields"].keys()  # FiftyOne refuses others
        assert Path(sample["filepath"]).is_file()
        for detection in sample["suspicious_regions"]["detections"]:
            assert detection["_cls"] == "Detection"
            assert 0.99 < detection["confidence"] < 1  # rarer than all but four of 1,440 patches
            box = np.array(detection["bounding_box"]) * np.array([*SIZE, *SIZE])
            boxes.setdefault(Path(sample["filepath"]).name, set()).add(rounded(box.tolist()))
    assert boxes == BOXES
    assert [sample["noise_rank"] for sample in dataset["samples"]] == list(range(1, 61))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_missing_images_and_names_that_are_not_unicode_are_left_out(
    findings: Findings, caplog: pytest.LogCaptureFixture
) -> None:
    odd = Path(findings.paths[0]).with_name(os.fsdecode(b"\xff.png"))
    Path(findings.paths[0]).rename(odd)
    findings.paths[0] = str(odd)
    Path(findings.paths[1]).unlink()
    assert len(exported_images(findings)) == 58
    assert caplog.text.count("is left out of the exports") == 2


@pytest.mark.parametrize("name", EXPORTS)
def test_own_files_are_replaced_and_others_are_not(findings: Findings, tmp_path: Path, name: str) -> None:
    for _ in range(2):
        write_exports(findings, [name], tmp_path)
    (tmp_path / f"{name}.json").write_text('{"images": []}')
    for function in (lambda: check_exports([name], tmp_path), lambda: write_exports(findings, [name], tmp_path)):
        with pytest.raises(ValueError, match="exists and is not part of a noise report"):
            function()
    assert (tmp_path / f"{name}.json").read_text() == '{"images": []}'
    (tmp_path / f"{name}.json").unlink()
    (tmp_path / f"{name}.json").mkdir()
    with pytest.raises(ValueError, match="is not part of a noise report"):
        check_exports([name], tmp_path)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--export", "coco"], ["coco"]),
        (["--export", "[fiftyone, label_studio]"], ["fiftyone", "label_studio"]),
        (["--export+", "coco", "--export+", "fiftyone"], ["coco", "fiftyone"]),
    ],
)
def test_command_hands_the_names_on(
    findings: Findings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    names: list[str],
) -> None:
    monkeypatch.setattr("anomalib_softpatch.report.ranking.rank_images", lambda *_, **__: findings)
    monkeypatch.setattr("anomalib_softpatch.report.writer.write_report", lambda *_: "page")
    main(["report", str(tmp_path / "set ü"), "--output", str(tmp_path / "out"), *options])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{name}.json" for name in names)
    assert capsys.readouterr().out.count("Exported: ") == len(names)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "set ü"), "--export", "voc"])
