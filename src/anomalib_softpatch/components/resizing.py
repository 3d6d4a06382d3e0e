# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Antialiased resizing as two matrix products, for graphs: all runtimes have these, but few have the operation itself.

ONNX's ``Resize`` has an attribute ``antialias``, which OpenVINO silently ignores. Without antialiasing, the features of
a large image differ from those that the memory bank was made from.
"""

from typing import Any, Literal

import torch


def resize_antialiased(
    images: torch.Tensor, size: tuple[int, int], interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> torch.Tensor:
    """Resize images as ``torch.nn.functional.interpolate(images, size, mode=interpolation, antialias=True)`` does.

    Args:
        images: Shape ``(..., height, width)``; in a graph, height and width may be unknown until it runs.
        size: Height and width of the result in pixels.
        interpolation: Shape of the filter.

    Returns:
        Shape ``(..., *size)``; images that already have this size stay the same, bit for bit.
    """
    rows, columns = (
        resize_weights(old, new, interpolation, images.device).to(images.dtype)
        for old, new in zip(images.shape[-2:], size, strict=True)
    )
    return rows @ (images @ columns.mT)


def resize_weights(
    old: int, new: int, interpolation: Literal["bilinear", "bicubic"], device: torch.device
) -> torch.Tensor:
    """Return the weights of old pixels of a row in new ones, shape ``(new, old)``; those of a new pixel sum to 1.

    ``"bilinear"`` is a triangle, as wide on both sides as the larger kind of pixel. ``"bicubic"`` is the cubic of Keys
    with a = -0.5, twice as wide.
    """
    # In units of 1 / (2 * old * new) of a row, centers are whole numbers, which have no rounding errors.
    old_centers = (2 * torch.arange(old, device=device) + 1) * new
    new_centers = (2 * torch.arange(new, device=device) + 1) * old
    larger: Any = torch.sym_max(old, new)  # a number, or a symbol for one in a graph
    distances = (old_centers - new_centers[:, None]).abs() / (2 * larger)
    if interpolation == "bilinear":
        weights = (1 - distances).clamp(min=0)
    else:
        near = (1.5 * distances - 2.5) * distances * distances + 1
        far = ((2.5 - 0.5 * distances) * distances - 4) * distances + 2
        weights = torch.where(distances < 1, near, torch.where(distances < 2, far, torch.zeros_like(distances)))  # noqa: PLR2004
    return weights / weights.sum(dim=1, keepdim=True)
