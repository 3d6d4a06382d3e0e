# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Manifest of injected noise: a CSV file that lets this or other software reproduce the noise.

Columns: ``image_path`` and ``mask_path`` (relative to the dataset's root, with ``/`` as separator; the mask path is
empty if the dataset has no masks), ``repeat``, ``angle``, ``shift_x``, ``shift_y`` (see
:func:`anomalib_softpatch.data.noise.select_noise`) and ``in_test`` (whether the image stays in the test set). There is
one row per injected image, in the order of injection.

Published lists of images can be read, too: a CSV file with a column ``filename`` and optionally ``clsname`` (category),
or a file with one path per line. Paths are relative to the dataset's root or to the category's folder, or absolute.
"""

import csv
import io
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from anomalib_softpatch.data.noise import NOISE_COLUMNS
from anomalib_softpatch.files import atomic_output

MANIFEST_COLUMNS = (*NOISE_COLUMNS, "mask_path", "in_test")
LIST_COLUMNS = ("path", "category")
PATH_COLUMN, CATEGORY_COLUMN = "filename", "clsname"  # of a published list


def write_manifest(noise: pd.DataFrame, path: str | Path) -> Path:
    """Write a table with the columns of a manifest. The file is either complete or does not exist."""
    with atomic_output(path) as temporary:
        noise.to_csv(temporary, columns=list(MANIFEST_COLUMNS), index=False)
    return Path(path)


def read_noise_file(path: str | Path) -> pd.DataFrame:
    """Read a manifest or a list of images.

    Returns:
        For a manifest, a table with the columns :data:`MANIFEST_COLUMNS`. For a list, a table with the columns
        :data:`LIST_COLUMNS`: the path with ``/`` as separator, and the category, which is empty if the list has none.
        An image may occur twice.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither.
    """
    path = Path(path)
    text = _read_text(path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = _cells(lines[0]) if lines else []
    if PATH_COLUMN in header:
        rows = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, skipinitialspace=True)
        paths, categories = list(rows[PATH_COLUMN]), rows.get(CATEGORY_COLUMN, "")
    elif not header or (len(header) > 1 and set(header) & set(MANIFEST_COLUMNS)):
        return read_manifest(path)
    elif len(header) > 1 and not PurePath(header[-1]).suffix:  # with a suffix, it is a path with a comma
        needed = f"A list needs the column {PATH_COLUMN!r} or only paths, a manifest needs {list(MANIFEST_COLUMNS)}."
        msg = f"manifest={str(path)!r} has the columns {header}. {needed}"
        raise ValueError(msg)
    else:
        rows_of_paths = lines[not PurePath(header[-1]).suffix :]  # without the header, if there is one
        paths = [cells[0] if len(cells := _cells(line)) == 1 else line for line in rows_of_paths]
        categories = ""
    paths = [path.replace("\\", "/") for path in paths]
    return pd.DataFrame({"path": paths, "category": categories}, dtype=object)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]))]


def _read_text(path: Path) -> str:
    if not path.is_file():
        msg = f"manifest={str(path)!r} is not a file. Give a manifest that an earlier run wrote, or a list of images."
        raise FileNotFoundError(msg)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"manifest={str(path)!r} cannot be read as a CSV file: {error}"
        raise ValueError(msg) from error


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read a manifest and check it. Paths may have backslashes, and the column ``mask_path`` may be missing.

    Returns:
        Table with the columns :data:`MANIFEST_COLUMNS`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a value is invalid, a row appears twice, or the rows of an image disagree on
            whether it is in the test set.
    """
    path = Path(path)
    try:
        table = pd.read_csv(io.StringIO(_read_text(path)), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
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
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
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


def _refuse(path: Path, table: pd.DataFrame, column: str, wrong: pd.Series, expected: str) -> None:
    """Raise an error that names the first wrong row, if any."""
    if wrong.any():
        row = table[wrong].iloc[0]
        place = f"{column}={str(row[column])!r} of {row['image_path']!r}"
        msg = f"manifest={str(path)!r}: {place} must be {expected}."
        raise ValueError(msg)
