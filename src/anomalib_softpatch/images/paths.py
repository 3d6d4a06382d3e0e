# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Paths in text: names may hold line breaks, bytes that are no Unicode, and what spreadsheets take for formulas."""

import os
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname


def to_text(path: str | Path) -> str:
    """Write a path so that it is one line of plain text from which the file can be found.

    Returns:
        The absolute path, or a ``file:`` URI if the path has control characters or bytes that are no Unicode.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links
    text = str(absolute)
    return text if text.isprintable() else absolute.as_uri()


def from_text(text: str) -> Path:
    """Return the path that :func:`to_text` wrote."""
    if text.startswith("file:"):
        return (
            Path(os.fsdecode(url2pathname(urlsplit(text).path)))
            if os.name == "nt"
            else Path(unquote(urlsplit(text).path, errors="surrogateescape"))
        )
    return Path(text)


def real_folder(path: str | Path) -> Path:
    """Return an absolute path without links to folders. A file that is itself a link keeps its name."""
    folder, name = os.path.split(path)
    return Path(os.path.realpath(folder), name)


def in_spreadsheet(path: str) -> str:
    """Write a path so that a spreadsheet shows it and does not compute it; it still leads to the file."""
    return f".{os.sep}{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path


def link(path: str | Path, folder: str | Path) -> str:
    """Return a link to a file for a page in a folder: a relative URL, or an absolute one to another drive."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive of Windows
        return Path(path).absolute().as_uri()
    return "/".join(quote(os.fsencode(part)) for part in Path(relative).parts)
