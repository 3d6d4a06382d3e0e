# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The image files of a folder and its subfolders."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_softpatch.text import counted, shown

# The extensions of torchvision and Anomalib, whose import would take seconds: a wrong folder is refused at once.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LINKED_FOLDER = "link to a folder, which is not followed"


@dataclass(frozen=True)
class Listing:
    """Contents of a folder and its subfolders, sorted."""

    images: list[Path] = field(default_factory=list)  # files with the extension of an image
    others: list[Path] = field(default_factory=list)  # other files
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # folders and reasons
    linked: list[Path] = field(default_factory=list)  # links to folders, which may contain the same images again


def list_files(folder: Path) -> Listing:
    """List the files of a folder and its subfolders."""
    found = Listing()

    def note(error: OSError) -> None:
        found.unreadable.append((str(error.filename), f"folder cannot be read: {error.strerror}"))

    for place, folders, names in os.walk(folder, onerror=note):
        found.linked.extend(path for path in (Path(place, name) for name in folders) if path.is_symlink())
        for path in (Path(place, name) for name in names):
            (found.images if path.suffix.lower() in IMAGE_EXTENSIONS else found.others).append(path)
    for paths in (found.images, found.others, found.linked):
        paths.sort()
    found.unreadable.sort()
    return found


def check_folder(folder: Path) -> None:
    """Raise a ``ValueError`` if a path is not a folder."""
    if not folder.is_dir():
        msg = f"folder={str(folder)!r} is not a folder. Give a folder with images."
        raise ValueError(msg)


def find_images(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """List the files of a folder and its subfolders.

    Returns:
        Files with the extension of an image; and what is skipped, with the reason: other files, unreadable folders and
        links to folders. Both are sorted.

    Raises:
        ValueError: If it is not a folder, or if there are no images.
    """
    check_folder(folder)
    found = list_files(folder)
    others = [(str(file), f"not an image file: '{file.suffix}'") for file in found.others]
    linked_folders = [(str(path), LINKED_FOLDER) for path in found.linked]
    if not found.images:
        among = f"among {counted(len(others), 'file')}. {about_links(linked_folders)}".rstrip()
        extensions = ", ".join(IMAGE_EXTENSIONS)
        msg = f"folder={str(folder)!r} has no images ({extensions}) in it or its subfolders, {among}"
        raise ValueError(msg)
    return found.images, sorted([*found.unreadable, *others, *linked_folders])


def about_links(skipped: Iterable[tuple[str, str]]) -> str:
    """Return a line for the terminal about the links to folders that :func:`find_images` skipped; empty for none."""
    linked = [path for path, reason in skipped if reason == LINKED_FOLDER]
    if not linked:
        return ""
    if len(linked) == 1:
        return f"1 link to a folder is not followed: {shown(linked[0])}.\n"
    return f"{len(linked)} links to folders are not followed: {shown(linked[0])} and {len(linked) - 1} more.\n"
