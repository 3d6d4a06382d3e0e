# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Result files that nobody ever finds half-written, and tables in CSV files."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and move it to its place if the block ends without an error.

    The folder of the path is made if needed. The temporary path is on the same file system and has the same file name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        plain = Path(folder) / f"{path.name}.mode"
        plain.touch()
        temporary.chmod(plain.stat().st_mode)  # as the user's umask sets it; some libraries make private files
        temporary.replace(path)


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that cannot be written to. It need not exist, and nothing is left in it.

    Raises:
        OSError: If nothing can be written there.
    """
    folder = Path(folder).absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with TemporaryDirectory(dir=existing, prefix="."):
            pass
    except OSError as error:
        msg = f"{str(folder)!r} cannot be written to: {error.strerror}. Give another folder."
        raise OSError(msg) from error


def beginning(file: Path) -> bytes:
    """Return the first thousand bytes of a file, which identify one of ours; empty if the path is not a file."""
    if not file.is_file():
        return b""
    with file.open("rb") as stream:
        return stream.read(1000)


def is_page(content: bytes, title: str) -> bool:
    """Tell from a file's first thousand bytes whether it is a page of this package whose title begins as given."""
    return content.startswith(b"<!doctype html>") and f"<title>{title}".encode() in content


def read_table(file: Path, *columns: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file in UTF-8 that has one of some lists of columns; error messages name the first list.

    Returns:
        Its columns, and for each row that is not empty, the number of the row and its cells. The header is row 1.

    Raises:
        ValueError: If it is not such a table.
        OSError: If it cannot be read.
    """
    msg = f"{str(file)!r} is not a table with the columns {', '.join(columns[0])}."
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [(number, row) for number, row in enumerate(csv.reader(stream), start=1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(msg) from error
    if not rows or rows[0][1] not in [list(names) for names in columns]:
        raise ValueError(msg)
    names = rows[0][1]
    for number, row in rows:
        if len(row) != len(names):
            msg = f"{msg[:-1]}: row {number} has {len(row)} cells instead of {len(names)}."
            raise ValueError(msg)
    return names, rows[1:]


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
