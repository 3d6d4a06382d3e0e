# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Which decisions count for a promise, and the lines about them."""

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from anomalib_softpatch.images.decisions import DEFECT, NORMAL, SET_ASIDE, UNDECIDED, Box, Decision
from anomalib_softpatch.scoring.decided import DecidedImage, about, read_decided
from samples import write_decisions


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "images" / f"{number:03}.png" for number in range(100)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(path.name.encode())  # images are not opened
    return list(map(str, paths))


def decide(tmp_path: Path, *decisions: tuple[str, str] | tuple[str, str, Box]) -> Path:
    file = tmp_path / "decisions.csv"
    write_decisions([Decision(Path(path), *rest) for path, *rest in decisions], file)
    return file


def test_which_decisions_count(images: list[str], tmp_path: Path) -> None:
    Path(images[3]).write_bytes(Path(images[2]).read_bytes())  # a copy
    Path(images[4]).unlink()
    verdicts = [NORMAL, DEFECT, NORMAL, NORMAL, NORMAL, SET_ASIDE, UNDECIDED]
    rows = [*zip(images, verdicts, strict=False), (images[7], NORMAL, Box(0, 0, 1, 1)), ("/elsewhere.png", NORMAL)]
    decided = read_decided(decide(tmp_path, *rows), images[:10], tmp_path / "model.onnx")
    assert decided.images == [
        DecidedImage(images[0], defect=False, whole=True),
        DecidedImage(images[1], defect=True, whole=True),
        DecidedImage(images[2], defect=False, whole=True),
        DecidedImage(images[7], defect=False, whole=False),
    ]
    assert decided.untouched == [images[6], *images[8:10]]
    assert decided.trained == 0


def test_images_of_the_training_folder_do_not_count(images: list[str], tmp_path: Path) -> None:
    output = tmp_path / "images-trained"
    output.mkdir()
    summary = {"folder": str(tmp_path / "images"), "checkpoint": str(output / "model.ckpt"), "exported": []}
    (output / "summary.json").write_text(json.dumps(summary))
    copy, new = tmp_path / "copy.png", tmp_path / "new.png"
    copy.write_bytes(Path(images[5]).read_bytes())
    new.write_bytes(b"new")
    images = [*images, str(copy), str(new)]
    file = decide(tmp_path, (images[0], NORMAL), (images[1], DEFECT), (images[-2], NORMAL), (images[-1], NORMAL))
    decided = read_decided(file, images, output / "model.ckpt")
    assert (decided.images, decided.trained) == ([DecidedImage(str(new), defect=False, whole=True)], 3)
    assert about(decided, {}, 0.05)[0].startswith("3 decided images not counted: the model was trained")
    file = decide(tmp_path, (images[0], NORMAL), (images[1], DEFECT))
    assert len(read_decided(file, images, output / "other.ckpt").images) == 2
    (output / "summary.json").write_text("[]")
    assert len(read_decided(file, images, output / "model.ckpt").images) == 2


def test_decisions_that_are_refused(images: list[str], tmp_path: Path) -> None:
    Path(images[1]).write_bytes(Path(images[0]).read_bytes())
    with pytest.raises(ValueError, match=r"normal and the other a defect, but they are copies"):
        read_decided(decide(tmp_path, (images[0], NORMAL), (images[1], DEFECT)), images, tmp_path)
    with pytest.raises(ValueError, match="decides about 1 image, none of which is among the 100 of this run"):
        read_decided(decide(tmp_path, ("/elsewhere.png", NORMAL), (images[0], UNDECIDED)), images, tmp_path)


def lines_about(images: list[str], tmp_path: Path, normal: range, defects: range, asked: float = 0.05) -> list[str]:
    """Return the lines if image i has the score i / 100, and the threshold is 0.795."""
    rows = [*((images[number], NORMAL) for number in normal), *((images[number], DEFECT) for number in defects)]
    decided = read_decided(decide(tmp_path, *rows), images, tmp_path / "model.onnx")
    verdicts = {path: ("anomalous" if number > 79 else "normal", number / 100) for number, path in enumerate(images)}
    return about(decided, verdicts, asked)


def test_lines(images: list[str], tmp_path: Path) -> None:
    good, defects, assumption = lines_about(images, tmp_path, range(0, 100, 2), range(1, 100, 10))
    # 10 of 50 good ones and 2 of 10 defects are above the threshold
    most = 100 * binomtest(10, 50, alternative="less").proportion_ci(0.95, "exact").high
    assert good.startswith(
        f"Good images: 10 of 50 decided are called anomalous. At most {most + 0.05:.1f} % of all are"
    )
    assert good.endswith("95 % sure; 5 % takes 286 more good images, none called anomalous.")
    assert binomtest(10, 336, alternative="less").proportion_ci(0.95, "exact").high <= 0.05
    assert binomtest(10, 335, alternative="less").proportion_ci(0.95, "exact").high > 0.05
    least = 100 * binomtest(2, 10, alternative="greater").proportion_ci(0.95, "exact").low
    assert defects == f"Defects: 2 of 10 decided are found. At least {least - 0.05:.1f} % of all are, 95 % sure."
    assert "drawn at random" in assumption
    assert lines_about(images, tmp_path, range(0, 100, 2), range(0), asked=0.5)[0].endswith("95 % sure (50 % asked).")


def test_images_chosen_by_score(images: list[str], tmp_path: Path) -> None:
    """The most suspicious images give no limit for defects, and the least suspicious ones none for good images."""
    good, defects, _ = lines_about(images, tmp_path, range(60, 90), range(90, 100))
    assert "At most" in good
    assert defects.startswith(
        "Defects: 10 of 10 decided are found. There is no limit for all: the decided images score h"
    )
    good, defects, _ = lines_about(images, tmp_path, range(30), range(30, 40))
    assert good.startswith(
        "Good images: 0 of 30 decided are called anomalous. There is no limit for all: the decided i"
    )
    assert defects == "Defects: 0 of 10 decided are found. At least 0.0 % of all are, 95 % sure."


def test_without_good_images_or_defects(images: list[str], tmp_path: Path) -> None:
    assert lines_about(images, tmp_path, range(0), range(0, 100, 9))[0].startswith(
        "Good images: 0 of 0 decided are called"
    )
    assert lines_about(images, tmp_path, range(0, 100, 9), range(0))[1].startswith(
        "Defects: 0 of 0 decided are found. Decide"
    )


def test_an_image_with_a_normal_region_counts_only_if_it_is_called_anomalous(images: list[str], tmp_path: Path) -> None:
    box = Box(0, 0, 1, 1)
    rows = [(images[0], NORMAL, box), (images[1], NORMAL, box), (images[2], NORMAL)]
    decided = read_decided(decide(tmp_path, *rows), images[:3], tmp_path / "model.onnx")
    verdicts = {images[0]: ("anomalous", 0.9), images[1]: ("normal", 0.1), images[2]: ("unreadable", float("nan"))}
    assert about(decided, verdicts, 0.05)[0] == (
        "Good images: 1 of 1 decided are called anomalous. Decide about images called normal, too, to know how many of "
        "all are."
    )
