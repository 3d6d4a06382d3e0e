# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Reading images as they are found in practice: some unreadable, some odd."""

import warnings
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_softpatch.data.depth import is_deep
from anomalib_softpatch.data.unreadable import reason_against_file

SMALLEST_SIDE = 8


def read_image(path: Path) -> tuple[torch.Tensor, str]:
    """Read an image as Anomalib reads it, and say what is odd about it.

    Args:
        path: Image file.

    Returns:
        Shape ``(3, height, width)``, in [0, 1], and a remark, which is empty for ordinary images.

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
                tensor = to_dtype(to_image(image.convert("RGB")), torch.float32, scale=True)
    except UnidentifiedImageError as error:
        msg = "not an image, or of an unknown format"
        raise ValueError(msg) from error
    except Exception as error:  # decoders raise whatever they like for broken files
        msg = f"cannot be read: {error}"
        raise ValueError(msg) from error
    height, width = tensor.shape[1:]
    if min(height, width) < SMALLEST_SIDE:
        msg = f"too small: {width} x {height} pixels"
        raise ValueError(msg)
    return tensor, "; ".join(remarks)
