# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import pandas as pd
import pytest

from anomalib_softpatch.data.manifest import read_manifest, write_manifest
from anomalib_softpatch.data.noise import select_noise

PATHS = ["a/test/cut/0.png", "a/test/cut/1.png", "a/test/hole, big/0.png"]


@pytest.fixture
def noise() -> pd.DataFrame:
    noise = select_noise(PATHS, 8, seed=1)
    return noise.assign(mask_path=noise["image_path"].str.replace("test", "ground_truth"), in_test=True)


def test_a_written_manifest_can_be_read(noise: pd.DataFrame, tmp_path: Path) -> None:
    path = write_manifest(noise, tmp_path / "new folder" / "manifest.csv")
    pd.testing.assert_frame_equal(read_manifest(path), noise, check_exact=True)
    assert [file.name for file in path.parent.iterdir()] == ["manifest.csv"]


def test_an_empty_manifest_can_be_read(noise: pd.DataFrame, tmp_path: Path) -> None:
    assert read_manifest(write_manifest(noise[:0], tmp_path / "manifest.csv")).empty


def test_backslashes_are_read_as_separators(noise: pd.DataFrame, tmp_path: Path) -> None:
    windows = noise.assign(**{name: noise[name].str.replace("/", "\\") for name in ("image_path", "mask_path")})
    pd.testing.assert_frame_equal(read_manifest(write_manifest(windows, tmp_path / "manifest.csv")), noise)


def test_masks_may_be_left_out(noise: pd.DataFrame, tmp_path: Path) -> None:
    noise.drop(columns="mask_path").to_csv(tmp_path / "manifest.csv", index=False)
    assert (read_manifest(tmp_path / "manifest.csv")["mask_path"] == "").all()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("repeat", "1.5", r"repeat='1.5' of 'a/test/.*must be a whole number"),
        ("repeat", "-1", "repeat='-1'"),
        ("repeat", "", "repeat=''"),
        ("angle", "three", r"angle='three'.*must be a number"),
        ("shift_x", "nan", "shift_x='nan'"),
        ("in_test", "maybe", r"in_test='maybe'.*must be True or False"),
        ("in_test", "False", r"in_test='.*' of 'a/test/.*the same for all rows"),
        ("repeat", "1", "repeat='1'.*different for each row"),
    ],
)
def test_wrong_values_are_named(noise: pd.DataFrame, tmp_path: Path, column: str, value: str, message: str) -> None:
    wrong = noise.astype(str)
    wrong.loc[0, column] = value
    wrong.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "manifest.csv")


def test_a_missing_column_is_named(noise: pd.DataFrame, tmp_path: Path) -> None:
    noise.drop(columns=["angle", "in_test"]).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(ValueError, match=r"lacks the columns \['angle', 'in_test'\]"):
        read_manifest(tmp_path / "manifest.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest='.*nothing.csv'"):
        read_manifest(tmp_path / "nothing.csv")


def test_a_file_that_is_not_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "image.csv").write_bytes(bytes(range(128, 256)) * 4)
    for name in ("empty.csv", "image.csv"):
        with pytest.raises(ValueError, match=rf"{name}' cannot be read as a CSV file"):
            read_manifest(tmp_path / name)
