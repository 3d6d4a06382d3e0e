# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The image files of a folder and of all folders in it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_softpatch.text import counted, shown

# Those of torchvision and Anomalib, without the seconds that importing them takes: a wrong folder is refused at once.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LINKED_FOLDER = "link to a folder, which is not followed"


@dataclass(frozen=True)
class Listing:
    """What is in a folder and in all folders in it, sorted."""

    images: list[Path] = field(default_factory=list)  # by their extension
    others: list[Path] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # folders, with the reason
    linked: list[Path] = field(default_factory=list)  # folders; they may lead back, or to images that are there


def list_files(folder: Path) -> Listing:
    """List the files of a folder and of all folders in it."""
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
    """Refuse with a ``ValueError`` what is not a folder."""
    if not folder.is_dir():
        msg = f"folder={str(folder)!r} is not a folder. Give one that has images in it."
        raise ValueError(msg)


def find_images(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """List the files of a folder and of all folders in it.

    Returns:
        Image files, by their extension, and what is not looked at with the reason: other files, unreadable folders and
        links to folders. Both sorted.

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
        msg = f"folder={str(folder)!r} has no images ({extensions}) in it or in its subfolders, {among}"
        raise ValueError(msg)
    return found.images, sorted([*found.unreadable, *others, *linked_folders])


def about_links(skipped: Iterable[tuple[str, str]]) -> str:
    """Return a line for the terminal if any of what :func:`find_images` skipped is a link to a folder; else nothing."""
    linked = [path for path, reason in skipped if reason == LINKED_FOLDER]
    if not linked:
        return ""
    if len(linked) == 1:
        return f"1 link to a folder is not followed: {shown(linked[0])}.\n"
    return f"{len(linked)} links to folders are not followed: {shown(linked[0])} and {len(linked) - 1} more.\n"
