# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The image files of a folder and of all folders in it."""

import os
from pathlib import Path

# Those of torchvision and Anomalib, without the seconds that importing them takes: a wrong folder is refused at once.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def list_files(folder: Path) -> tuple[list[Path], list[Path], list[tuple[str, str]]]:
    """List the files of a folder and of all folders in it.

    Args:
        folder: Folder.

    Returns:
        Image files, by their extension; the other files; and folders that cannot be read, with the reason. All sorted.
    """
    unreadable = []

    def note(error: OSError) -> None:
        unreadable.append((str(error.filename), f"folder cannot be read: {error.strerror}"))

    files = sorted(Path(place, name) for place, _, names in os.walk(folder, onerror=note) for name in names)
    images = [file for file in files if file.suffix.lower() in IMAGE_EXTENSIONS]
    return images, [file for file in files if file.suffix.lower() not in IMAGE_EXTENSIONS], sorted(unreadable)


def check_folder(folder: Path) -> None:
    """Refuse what is not a folder.

    Args:
        folder: Folder.

    Raises:
        ValueError: If it is none.
    """
    if not folder.is_dir():
        msg = f"folder={str(folder)!r} is not a folder. Give one that has images in it."
        raise ValueError(msg)


def find_images(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """List the files of a folder and of all folders in it.

    Args:
        folder: Folder.

    Returns:
        Image files, by their extension, and the other files and unreadable folders with the reason; both sorted.

    Raises:
        ValueError: If it is not a folder, or if there are no images.
    """
    check_folder(folder)
    images, others, skipped = list_files(folder)
    if not images:
        msg = (
            f"folder={str(folder)!r} has no images ({', '.join(IMAGE_EXTENSIONS)}) in it or in its subfolders, "
            f"among {len(others)} files."
        )
        raise ValueError(msg)
    return images, sorted([*skipped, *((str(file), f"not an image file: '{file.suffix}'") for file in others)])
