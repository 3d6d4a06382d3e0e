# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Tables of predictions, verdicts, and the peak of an anomaly map."""

import csv
import hashlib
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomalib_softpatch.images.paths import from_text
from anomalib_softpatch.predictions.table import (
    Prediction,
    fingerprint,
    peak,
    summary,
    time_of_change,
    verdict,
    write_predictions,
)

COLUMNS = ["path", "score", "threshold", "verdict", "x", "y", "reason", "modified", "model"]


def prediction(path: str | Path = "a.png", word: str = "normal", score: float = 0.25) -> Prediction:
    return Prediction(str(path), score, 0.5, word, 3, 4)


def test_table(tmp_path: Path) -> None:
    """Names that look like formulas, need quotes, or have more than one line get a row each and can be read back."""
    names = ["plain.png", "=cmd", "+1,2.png", 'say "cheese".png', "two\nlines.png", "größer 画像.png", "tab\there.png"]
    for name in names:
        (tmp_path / name).touch()
    predictions = [prediction(tmp_path / name, score=0.1 * number) for number, name in enumerate(names)]
    path = write_predictions(predictions, tmp_path / "new folder" / "predictions.csv")
    assert path.read_text(encoding="utf-8").count("\n") == len(names) + 1
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert [from_text(row["path"]).name for row in rows] == names
    assert all(from_text(row["path"]).is_file() for row in rows)
    assert not any(row["path"].startswith(("=", "+", "-", "@")) for row in rows)
    assert [float(row["score"]) for row in rows] == [each.score for each in predictions]
    assert {(row["threshold"], row["verdict"], row["x"], row["y"]) for row in rows} == {("0.5", "normal", "3", "4")}


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_predictions([prediction("=cmd")], Path("predictions.csv"))
    assert pd.read_csv(path)["path"].tolist() == [str(tmp_path / "=cmd")]


def test_empty_table(tmp_path: Path) -> None:
    table = pd.read_csv(write_predictions([], tmp_path / "predictions.csv"))
    assert table.empty
    assert list(table) == COLUMNS


def test_a_failed_table_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_predictions([prediction()], tmp_path / "predictions.csv")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_predictions([prediction(), prediction()], path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize(
    ("score", "threshold", "label", "expected"),
    [
        (0.6, 0.5, None, "anomalous"),
        (0.5, 0.5, None, "normal"),  # anomalous scores are above the threshold, as in Anomalib
        (0.4, 0.5, None, "normal"),
        (9.0, math.nan, None, ""),
        (0.4, 0.5, np.array([True]), "anomalous"),  # the model's own label counts
        (0.6, 0.5, np.array([[False]]), "normal"),
        (0.6, 0.5, False, "normal"),
        (0.4, math.nan, True, "anomalous"),
        (math.nan, 0.5, None, "unreadable"),  # not normal, though it is not above the threshold
        (math.nan, 0.5, False, "unreadable"),
    ],
)
def test_verdict(score: float, threshold: float, label: object, expected: str) -> None:
    assert verdict(score, threshold, label) == expected


@pytest.mark.parametrize(
    ("row", "column", "size", "expected"),
    [
        (2, 5, (8, 4), (5, 2)),  # a map of the image's own size
        (0, 0, (80, 40), (5, 5)),  # the center of a pixel that covers ten by ten
        (3, 7, (80, 40), (75, 35)),
        (3, 7, (4, 2), (3, 1)),
        (1, 6, (800, 100), (650, 37)),
    ],
)
def test_peak(row: int, column: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The map has 4 rows and 8 columns."""
    anomaly_map = np.zeros((4, 8))
    anomaly_map[row, column] = 1
    assert peak(anomaly_map, size) == expected


def test_peak_of_a_constant_map_is_its_first_pixel() -> None:
    for value in (0.0, math.nan, math.inf):
        assert peak(np.full((4, 8), value), (80, 40)) == (5, 5)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "0 of 0 images anomalous"),
        (["normal", "unreadable"], "0 of 1 image anomalous, 1 unreadable"),
        (["", "unreadable"], "1 image scored; the model has no threshold to judge them by, 1 unreadable"),
        (["normal", "anomalous", "anomalous"], "2 of 3 images anomalous"),
        (["normal"], "0 of 1 image anomalous"),
        (["", ""], "2 images scored; the model has no threshold to judge them by"),
    ],
)
def test_summary(verdicts: list[str], expected: str) -> None:
    assert summary(Counter(verdicts)) == expected


def test_reasons_become_one_line(tmp_path: Path) -> None:
    unreadable = Prediction(
        str(tmp_path / "a.png"), math.nan, math.nan, "unreadable", None, None, "two\nlines\x1b[2J\udcff"
    )
    assert unreadable.line().isprintable()
    text = write_predictions([unreadable], tmp_path / "predictions.csv").read_text(encoding="utf-8")
    assert text.splitlines()[1] == f"{tmp_path / 'a.png'},,,unreadable,,,two lines\x1b[2J?,,"


def test_time_of_change_is_in_utc(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert time_of_change(file) == ""
    file.touch()
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    assert time_of_change(file) == "2023-11-14T22:13:20.123456+00:00"


def test_fingerprint_covers_both_files_of_openvino(tmp_path: Path) -> None:
    xml, weights = tmp_path / "model.xml", tmp_path / "model.bin"
    xml.write_bytes(b"abc")
    assert fingerprint(xml) == hashlib.sha256(b"abc").hexdigest()[:12]
    weights.write_bytes(b"def")
    assert fingerprint(xml) == hashlib.sha256(b"abcdef").hexdigest()[:12]


def test_line() -> None:
    """The terminal gets one line, even if the name has several or has control characters."""
    assert prediction("a b.png", "anomalous", 0.75).line().split(maxsplit=2) == [
        "anomalous",
        "0.7500",
        "(3, 4)  a b.png",
    ]
    assert prediction(word="").line().startswith("no verdict")
    for path in ("two\nlines.png", "bell\a.png", "escape\x1b[2J.png"):
        assert prediction(path).line().isprintable()
        assert repr(path) in prediction(path).line()
