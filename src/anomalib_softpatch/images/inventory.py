# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What is in a folder of images: each file by its name in it and a hash of its content."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anomalib_softpatch.images.hashing import hash_files


def inventory(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Hash files of a folder and of the folders in it.

    Returns:
        Hash of each file by its name relative to the folder, sorted by name; empty if it cannot be read.
    """

    def file_hash(path: Path) -> str:
        try:
            return hash_files(path)
        except OSError:
            return ""

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        hashes = pool.map(file_hash, paths)
        return dict(
            sorted((path.relative_to(folder).as_posix(), value) for path, value in zip(paths, hashes, strict=True))
        )


def linked_names(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the links among some files of a folder that lead to another of them: names of files by names of links."""
    paths = {name: folder / name for name in sorted(names)}
    originals = {os.path.realpath(path): name for name, path in paths.items() if not path.is_symlink()}
    led_to = {name: originals.get(os.path.realpath(path)) for name, path in paths.items() if path.is_symlink()}
    return {name: original for name, original in led_to.items() if original is not None}


def exact_copies(files: Mapping[str, str]) -> list[list[str]]:
    """Return the names of each group of two or more files that are equal byte for byte, from an :func:`inventory`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        if files[name]:
            groups[files[name]].append(name)
    return [names for names in groups.values() if len(names) > 1]
