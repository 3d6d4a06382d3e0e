# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Geometry: the part of an image that the grid of patches covers, in pixels of the image."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import BoundingBoxes

ANOMALOUS_SHARE = 0.1


@dataclass(frozen=True)
class Region:
    """Rectangle in pixels of an image, right and bottom exclusive; with padding, it extends beyond the image."""

    left: float
    top: float
    right: float
    bottom: float

    def patch_size(self, grid_size: tuple[int, int]) -> tuple[float, float]:
        """Return width and height of a patch in pixels, given height and width of the grid."""
        return (self.right - self.left) / grid_size[1], (self.bottom - self.top) / grid_size[0]

    def patch_center(self, row: int, column: int, grid_size: tuple[int, int]) -> tuple[int, int]:
        """Return x and y of the pixel at the center of the patch at a row and a column of the grid."""
        x = self.left + (column + 0.5) / grid_size[1] * (self.right - self.left)
        y = self.top + (row + 0.5) / grid_size[0] * (self.bottom - self.top)
        return int(x), int(y)

    def crop(self, mask: torch.Tensor) -> torch.Tensor:
        """Cut the rectangle out of a mask of shape ``(height, width)``, with zeros beyond the mask."""
        height, width = mask.shape
        left, top, right, bottom = round(self.left), round(self.top), round(self.right), round(self.bottom)
        return F.pad(mask, (-left, right - width, -top, bottom - height))


def visible_region(transform: Transform | None, size: tuple[int, int]) -> Region:
    """Find the part of an image that a pre-processor's transform passes to the model.

    The transform is applied to a bounding box in the middle of the image. Scale and offset follow from the result.

    Args:
        transform: Transform that resizes, pads and crops; rotations are ignored. ``None`` for no transform.
        size: Width and height of the image in pixels.
    """
    width, height = size
    if transform is None:
        return Region(0, 0, width, height)
    box = torch.tensor([[0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height]])
    moved = transform(BoundingBoxes(box, format="XYXY", canvas_size=(height, width)))
    left, top, right, bottom = moved[0].tolist()
    out_height, out_width = moved.canvas_size
    scale_x, scale_y = (right - left) / (0.2 * width), (bottom - top) / (0.2 * height)
    offset_x, offset_y = left - 0.4 * width * scale_x, top - 0.4 * height * scale_y
    return Region(
        -offset_x / scale_x,
        -offset_y / scale_y,
        (out_width - offset_x) / scale_x,
        (out_height - offset_y) / scale_y,
    )


def true_patches(mask: torch.Tensor | None, region: Region, grid_size: tuple[int, int]) -> torch.Tensor:
    """Return which patches of an image are anomalous.

    They are those with at least a tenth of anomalous pixels, so that thin scratches count. If no patch reaches a tenth,
    it is the patch with the largest share.

    Args:
        mask: Mask of the image, shape ``(height, width)``, nonzero where it is anomalous; ``None`` for a normal image.
        region: Part of the image that the grid covers.
        grid_size: Height and width of the grid.

    Returns:
        Boolean of shape ``grid_size``.
    """
    if mask is None:
        return torch.zeros(grid_size, dtype=torch.bool)
    visible = region.crop((mask > 0).float())
    covered = F.interpolate(visible[None, None], size=grid_size, mode="area")[0, 0]
    return (covered >= covered.max().clamp(max=ANOMALOUS_SHARE)) & (covered > 0)
