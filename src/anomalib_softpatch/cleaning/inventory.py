# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What is in a folder of images: each file by its name in it and a hash of its content."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 2**20


def file_hash(path: Path) -> str:
    """Hash the content of a file.

    Args:
        path: File.

    Returns:
        SHA-256 in hexadecimal; empty if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


def inventory(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Hash files of a folder.

    Args:
        folder: Folder.
        paths: Files in it or in folders in it.

    Returns:
        Hash of each file by its name relative to the folder, sorted by name.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        hashes = pool.map(file_hash, paths)
        return dict(
            sorted((path.relative_to(folder).as_posix(), value) for path, value in zip(paths, hashes, strict=True))
        )


def exact_copies(files: Mapping[str, str]) -> list[list[str]]:
    """Find files that are equal byte for byte.

    Args:
        files: From :func:`inventory`.

    Returns:
        Names of the files of each group of two or more, sorted.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        if files[name]:
            groups[files[name]].append(name)
    return [names for names in groups.values() if len(names) > 1]
