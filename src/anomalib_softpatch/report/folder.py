# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The image files of a folder and of all folders in it."""

import os
from pathlib import Path

# Those of torchvision and Anomalib, without the seconds that importing them takes: a wrong folder is refused at once.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def find_images(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """List the files of a folder and of all folders in it.

    Args:
        folder: Folder.

    Returns:
        Image files, by their extension, and the other files and unreadable folders with the reason; both sorted.

    Raises:
        ValueError: If it is not a folder, or if there are no images.
    """
    if not folder.is_dir():
        msg = f"folder={str(folder)!r} is not a folder. Give one that has images in it."
        raise ValueError(msg)
    skipped = []

    def unreadable(error: OSError) -> None:
        skipped.append((str(error.filename), f"folder cannot be read: {error.strerror}"))

    files = [Path(place, name) for place, _, names in os.walk(folder, onerror=unreadable) for name in names]
    images = sorted(file for file in files if file.suffix.lower() in IMAGE_EXTENSIONS)
    skipped += [
        (str(file), f"not an image file: '{file.suffix}'")
        for file in files
        if file.suffix.lower() not in IMAGE_EXTENSIONS
    ]
    if not images:
        msg = (
            f"folder={str(folder)!r} has no images ({', '.join(IMAGE_EXTENSIONS)}) in it or in its subfolders, "
            f"among {len(files)} files."
        )
        raise ValueError(msg)
    return images, sorted(skipped)
