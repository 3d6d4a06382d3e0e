# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Paths as text. Names may have line breaks, bytes that are not Unicode, or look like formulas to a spreadsheet."""

import os
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname


def to_text(path: str | Path) -> str:
    """Return one line of plain text that leads to the file.

    Returns:
        The absolute path, or a ``file:`` URI if the path has control characters or bytes that are not Unicode.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links
    text = str(absolute)
    return text if text.isprintable() else absolute.as_uri()


def from_text(text: str) -> Path:
    """Return the path from the text of :func:`to_text`."""
    if not text.startswith("file:"):
        return Path(text)
    path = urlsplit(text).path
    return Path(url2pathname(path) if os.name == "nt" else unquote(path, errors="surrogateescape"))


def real_folder(path: str | Path) -> Path:
    """Return an absolute path without links to folders. A file that is a link keeps its own name."""
    folder, name = os.path.split(path)
    return Path(os.path.realpath(folder), name)


def in_spreadsheet(path: str) -> str:
    """Return a path that leads to the same file and that no spreadsheet evaluates as a formula."""
    return f".{os.sep}{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path


def link(path: str | Path, folder: str | Path) -> str:
    """Return a link to a file for a page in a folder: a relative URL, or an absolute one for another drive."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive of Windows
        return Path(path).absolute().as_uri()
    return "/".join(quote(os.fsencode(part)) for part in Path(relative).parts)
