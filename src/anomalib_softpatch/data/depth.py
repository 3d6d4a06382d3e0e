# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images of more than 8 bits per value, which Anomalib reads as almost white."""

from pathlib import Path

from PIL import Image

from anomalib_softpatch.image_files import is_deep

LARGEST_VALUE = 255


def cut_values(path: str | Path) -> str:
    """Say what is lost of an image that has values above 255, which Anomalib cuts at 255.

    Args:
        path: Image file.

    Returns:
        A remark for users; empty if nothing is lost or if this is no image file.
    """
    try:
        with Image.open(path) as image:
            largest = image.getextrema()[1] if is_deep(image) else 0
            mode = image.mode
    except OSError:
        return ""
    if largest <= LARGEST_VALUE:
        return ""
    return f"{path} has values up to {largest:g} (mode {mode}), and Anomalib cuts values at {LARGEST_VALUE}"
