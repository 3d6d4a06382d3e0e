# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Reading image files as they are found in practice, some unreadable, some odd, without importing torch."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SMALLEST_SIDE = 8


def read_pixels(path: Path) -> tuple[np.ndarray, str]:
    """Read an image as Anomalib reads it, and say what is odd about it.

    Args:
        path: Image file.

    Returns:
        Shape ``(height, width, 3)``, 8 bits per value, and a remark, which is empty for ordinary images.

    Raises:
        ValueError: If it cannot be read; the message is the reason.
    """
    reason = reason_against_file(path)
    if reason:
        raise ValueError(reason)
    remarks = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of decoders about what they could read nevertheless
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) > 1:
                    remarks.append(f"has {image.n_frames} frames, the first was looked at")
                if is_deep(image):
                    remarks.append(f"more than 8 bits per value ({image.mode}); Anomalib cuts values at 255")
                pixels = np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        msg = "not an image, or of an unknown format"
        raise ValueError(msg) from error
    except Exception as error:  # decoders raise whatever they like for broken files
        msg = f"cannot be read: {error}"
        raise ValueError(msg) from error
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        msg = f"too small: {width} x {height} pixels"
        raise ValueError(msg)
    return pixels, "; ".join(remarks)


def reason_against_file(path: Path) -> str:
    """Say why a file need not be opened.

    Args:
        path: File.

    Returns:
        The reason; empty if it should be opened.
    """
    try:
        if not path.is_file():
            return "not a file, or a link that leads nowhere"
        return "" if path.stat().st_size else "empty file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def image_size(path: str | Path) -> tuple[int, int]:
    """Read width and height of an image without decoding it.

    Args:
        path: Image file.

    Raises:
        OSError: If it cannot be read, or is no image.
    """
    with Image.open(path) as image:
        return image.size


def is_deep(image: Image.Image) -> bool:
    """Whether an image has a mode of more than 8 bits per value: one channel of 16 or 32 bits.

    Pillow reduces images of several channels of 16 bits to 8 as it should.

    Args:
        image: Opened image; it is not decoded.
    """
    return image.mode.startswith(("I", "F"))
