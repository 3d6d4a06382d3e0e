# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images of a folder as tensors."""

from pathlib import Path

import torch
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_softpatch.image_files import read_pixels


def read_image(path: Path) -> tuple[torch.Tensor, str]:
    """Read an image as Anomalib reads it, and say what is odd about it.

    Args:
        path: Image file.

    Returns:
        Shape ``(3, height, width)``, in [0, 1], and a remark, which is empty for ordinary images.

    Raises:
        ValueError: If it cannot be read; the message is the reason.
    """
    pixels, remark = read_pixels(path)
    return to_dtype(to_image(pixels), torch.float32, scale=True), remark
