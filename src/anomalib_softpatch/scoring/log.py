# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The table of predictions as a growing file: rows are kept even if the process is killed."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from anomalib_softpatch.files import check_writable
from anomalib_softpatch.predictions.table import COLUMNS, Prediction, csv_lines, read_predictions

HEADER = csv_lines([COLUMNS])


class PredictionLog:
    """Append a row for each image at once, and find the rows that images already have.

    A row is never changed or removed. If an image was scored again, because its file has changed or could not be read
    before, its last row counts. A file without rows is removed at the end.

    Args:
        path: CSV file, new or from an earlier run.
        model: Fingerprint of the model.

    Raises:
        ValueError: If the file is not such a table, or holds verdicts of another model.
        OSError: If it cannot be written to.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self._model = model
        if path.exists() and not path.is_file():
            msg = f"output={str(path)!r} is not a file. Give the name of a CSV file."
            raise ValueError(msg)
        check_writable(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            msg = f"output={str(path)!r} cannot be written to: {error.strerror}. Give another file."
            raise OSError(msg) from error
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "PredictionLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and remove it if it is empty."""
        empty = os.fstat(self._file).st_size == 0
        os.close(self._file)
        if empty:
            self.path.unlink()

    def _check(self) -> None:
        """Refuse a file that is not a table of this model, and cut off half a row that a killed process has left."""
        size = os.fstat(self._file).st_size
        with self.path.open("rb") as file:
            start = file.readline()
            if start != HEADER and not (HEADER.startswith(start) and len(start) == size):
                msg = f"output={str(self.path)!r} is not a table of this command. Give the name of a new file."
                raise ValueError(msg)
            whole = len(start) if start == HEADER else 0
            for line in file:
                whole += len(line) if line.endswith(b"\n") else 0
        if whole < size:
            os.ftruncate(self._file, whole)
        with self.path.open(encoding="utf-8", newline="") as file:
            if any(row["model"] != self._model for row in csv.DictReader(file)):
                msg = f"output={str(self.path)!r} holds verdicts of another model. Give a new file, or remove that one."
                raise ValueError(msg)

    def predictions(self, paths: Iterable[str]) -> dict[str, Prediction]:
        """Return the last prediction, of this or an earlier run, for each image that has one, by its path as given."""
        wanted = {os.path.abspath(path): path for path in paths}  # noqa: PTH100  # resolve() would follow links
        return {wanted[each.path]: each for each in read_predictions(self.path) if each.path in wanted}

    def append(self, prediction: Prediction) -> None:
        """Write a row.

        Raises:
            OSError: If the row cannot be written, for example because the disk is full. All earlier rows are kept.
        """
        size = os.fstat(self._file).st_size
        content = (b"" if size else HEADER) + csv_lines([prediction.cells()])
        try:
            while content:
                content = content[os.write(self._file, content) :]
        except OSError as error:
            os.ftruncate(self._file, size)
            reason = f"{str(self.path)!r} cannot be written to any more: {error.strerror}."
            msg = f"{reason} All earlier rows are kept. When this is fixed, the same command continues."
            raise OSError(msg) from error
