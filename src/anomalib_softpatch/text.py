# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Numbers, names and reasons in messages to people."""

from pathlib import Path


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets a plural s unless there is exactly one.

    Example:
        >>> counted(1, "image"), counted(0, "image"), counted(2, "suspicious path")
        ('1 image', '0 images', '2 suspicious paths')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown(path: str | Path) -> str:
    """Return a path as one line for the terminal; in Python's notation if it has characters that cannot be printed."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
