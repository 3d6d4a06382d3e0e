# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Image files that cannot be read, found before a fit meets the first of them."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anomalib.data import AnomalibDataModule, AnomalibDataset
from PIL import Image, UnidentifiedImageError

from anomalib_softpatch.image_files import reason_against_file

MOST_LISTED = 20


def unreadable_images(datamodule: AnomalibDataModule) -> dict[str, str]:
    """Find the images of a datamodule that cannot be read.

    Args:
        datamodule: Datamodule that is set up.

    Returns:
        Why each of them cannot be read, by its path.
    """
    paths = sorted({str(path) for data in _datasets(datamodule) for path in data.samples["image_path"]})
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # decoders let other threads run
        reasons = pool.map(reason_against, paths)
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def leave_out(datamodule: AnomalibDataModule, paths: Sequence[str]) -> None:
    """Take images out of the sets of a datamodule.

    Args:
        datamodule: Datamodule that is set up.
        paths: Images.
    """
    for data in _datasets(datamodule):
        kept = (~data.samples["image_path"].astype(str).isin(paths)).to_numpy().nonzero()[0]
        if len(kept) < len(data):
            data.subsample(list(kept), inplace=True)


def listed(reasons: dict[str, str]) -> str:
    """Write images and reasons as lines of a message.

    Args:
        reasons: From :func:`unreadable_images`.

    Returns:
        A line for each of the first images.
    """
    lines = [f"  {path}: {reason}" for path, reason in list(reasons.items())[:MOST_LISTED]]
    more = len(reasons) - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)


def reason_against(path: str | Path) -> str:
    """Say why an image file cannot be read, with no more work than it takes to know.

    Args:
        path: Image file.

    Returns:
        The reason; empty if the file can be read.
    """
    path = Path(path)
    reason = reason_against_file(path)
    if reason:
        return reason
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of decoders about what they could read nevertheless
            if not _has_right_checksums(path):
                with Image.open(path) as image:
                    image.draft("L", (1, 1))  # JPEG files are decoded at an eighth of their size, other files whole
                    image.load()
    except UnidentifiedImageError:
        return "not an image, or of an unknown format"
    except Exception as error:  # decoders raise whatever they like for broken files
        return f"cannot be read: {error}"
    return ""


def _has_right_checksums(path: Path) -> bool:
    """Whether a file is a whole PNG file by its checksums, which are read much faster than its pixels.

    Pillow reads pixels under a wrong checksum, too: only decoding tells whether such a file is broken.
    """
    with Image.open(path) as image:
        if image.format != "PNG":
            return False
        try:
            image.verify()
        except Exception:  # as above
            return False
    return True


def _datasets(datamodule: AnomalibDataModule) -> list[AnomalibDataset]:
    data = [getattr(datamodule, f"{name}_data", None) for name in ("train", "val", "test")]
    return [each for each in data if isinstance(each, AnomalibDataset) and "image_path" in each.samples]
