# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Manifest of injected noise: a CSV file from which the same noise can be made again, here or by other software.

Columns: ``image_path`` and ``mask_path`` (relative to the dataset's root, ``/`` as separator; the mask is empty where
the dataset has none), ``repeat``, ``angle``, ``shift_x``, ``shift_y`` (see
:func:`anomalib_softpatch.data.noise.select_noise`) and ``in_test`` (whether the image stays in the test set). One row
per injected image, in the order of injection.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from anomalib_softpatch.data.noise import NOISE_COLUMNS
from anomalib_softpatch.files import atomic_output

MANIFEST_COLUMNS = (*NOISE_COLUMNS, "mask_path", "in_test")


def write_manifest(noise: pd.DataFrame, path: str | Path) -> Path:
    """Write a manifest. The file is either complete or not there.

    Args:
        noise: Table with the manifest's columns.
        path: CSV file to write; its folder is made if need be.

    Returns:
        Path of the file.
    """
    with atomic_output(path) as temporary:
        noise.to_csv(temporary, columns=list(MANIFEST_COLUMNS), index=False)
    return Path(path)


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read a manifest and check it.

    Args:
        path: CSV file with the manifest's columns. Paths in it may also have backslashes as separators, and the column
            ``mask_path`` may be missing.

    Returns:
        Table with the columns of :data:`MANIFEST_COLUMNS`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a manifest: a column is missing, a value is not of its kind, a row appears twice, or a
            image is said to be both in the test set and not.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"manifest={str(path)!r} is not a file. Give the CSV file that an earlier run wrote beside its results."
        raise FileNotFoundError(msg)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        msg = f"manifest={str(path)!r} cannot be read as a CSV file: {error}"
        raise ValueError(msg) from error
    if "mask_path" not in table:
        table["mask_path"] = ""
    missing = [column for column in MANIFEST_COLUMNS if column not in table]
    if missing:
        msg = f"manifest={str(path)!r} lacks the columns {missing}. It needs {list(MANIFEST_COLUMNS)}."
        raise ValueError(msg)

    table = table[list(MANIFEST_COLUMNS)].copy()
    for column in ("image_path", "mask_path"):
        table[column] = table[column].str.replace("\\", "/", regex=False)
    for column in ("repeat", "angle", "shift_x", "shift_y"):
        numbers = table[column].map(_number).astype(float)
        _refuse(path, table, column, ~np.isfinite(numbers), "a number")
        if column == "repeat":
            _refuse(path, table, column, (numbers < 0) | (numbers % 1 != 0), "a whole number, 0 or more")
        table[column] = numbers.astype(int) if column == "repeat" else numbers
    in_test = table["in_test"].str.lower().map({"true": True, "1": True, "false": False, "0": False})
    _refuse(path, table, "in_test", in_test.isna(), "True or False")
    table["in_test"] = in_test.astype(bool)

    _refuse(path, table, "repeat", table.duplicated(["image_path", "repeat"]), "different for each row of an image")
    undecided = table.groupby("image_path")["in_test"].transform("nunique") > 1
    _refuse(path, table, "in_test", undecided, "the same for all rows of an image")
    return table


def _number(text: str) -> float:
    """Number that a text stands for, not a number where it stands for none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _refuse(path: Path, table: pd.DataFrame, column: str, wrong: pd.Series, expected: str) -> None:
    """Raise an error that names the first wrong row, if there is one."""
    if wrong.any():
        row = table[wrong].iloc[0]
        msg = (
            f"manifest={str(path)!r}: {column}={str(row[column])!r} of {row['image_path']!r} is wrong; "
            f"it must be {expected}."
        )
        raise ValueError(msg)
