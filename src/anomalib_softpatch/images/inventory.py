# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Contents of a folder of images: the name of each file and a hash of its content."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anomalib_softpatch.images.hashing import hash_files


def inventory(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Hash files of a folder and its subfolders.

    Returns:
        Hash of each file by its path relative to the folder, sorted; an empty hash for an unreadable file.
    """

    def file_hash(path: Path) -> str:
        try:
            return hash_files(path)
        except OSError:
            return ""

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
        hashes = pool.map(file_hash, paths)
        return dict(
            sorted((path.relative_to(folder).as_posix(), value) for path, value in zip(paths, hashes, strict=True))
        )


def linked_names(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the links among some files of a folder that lead to others of them: names of files by names of links."""
    paths = {name: folder / name for name in sorted(names)}
    originals = {os.path.realpath(path): name for name, path in paths.items() if not path.is_symlink()}
    led_to = {name: originals.get(os.path.realpath(path)) for name, path in paths.items() if path.is_symlink()}
    return {name: original for name, original in led_to.items() if original is not None}


def exact_copies(files: Mapping[str, str]) -> list[list[str]]:
    """Return the names of each group of identical files, given an :func:`inventory`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        if files[name]:
            groups[files[name]].append(name)
    return [names for names in groups.values() if len(names) > 1]
