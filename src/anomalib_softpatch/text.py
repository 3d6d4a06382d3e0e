# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Numbers and names in what is said to people."""

from pathlib import Path


def counted(number: int, noun: str) -> str:
    """Return a number of things in words.

    Args:
        number: How many.
        noun: What, for one of them.

    Returns:
        The number and the noun, with an s unless there is one.

    Example:
        >>> counted(1, "image"), counted(0, "image"), counted(2, "suspicious path")
        ('1 image', '0 images', '2 suspicious paths')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown(path: str | Path) -> str:
    """Return a path as one line for the terminal, whatever its name.

    Returns:
        The path, or its representation in Python if it holds characters that cannot be printed.
    """
    text = str(path)
    return text if text.isprintable() else repr(text)
