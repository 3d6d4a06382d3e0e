# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Patch features: intermediate layers of a frozen backbone, with the 3 x 3 neighborhood of each patch."""

from collections.abc import Sequence
from typing import Literal

import torch
from anomalib.models.components import TimmFeatureExtractor
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.backbones import check_weights
from anomalib_softpatch.components.timm_backbone import TimmBackbone, check_backbone
from anomalib_softpatch.components.tracing import is_traced
from anomalib_softpatch.options import check_choice

# Values that "unfold" pools each layer, and the layers together, to (PatchCore; the official code of SoftPatch)
POOLED_CHANNELS = 1024
# Images that pass through the backbone together on a CPU: few, so that the outputs of a layer stay in its cache
CPU_BATCH = 4


class PatchFeatureExtractor(nn.Module):
    """Extract one feature vector for every patch of an image.

    Args:
        backbone: Name of a timm model, ``local-dir:<folder>`` for weights on disk, or a module.
        layers: Names of the layers, the one with the finest grid first.
        pre_trained: Use pre-trained weights.
        patch_embedding: ``"average"``: average each 3 x 3 neighborhood, concatenate the layers (Anomalib's PatchCore).
            ``"unfold"``: keep the neighborhood, pool each layer to 1,024 values and all to 1,024 (the papers).

    Raises:
        ValueError: If a layer or the patch embedding is unknown.
        RuntimeError: If the weights cannot be loaded.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        layers: Sequence[str],
        pre_trained: bool = True,
        patch_embedding: Literal["average", "unfold"] = "average",
    ) -> None:
        super().__init__()
        check_choice("patch_embedding", patch_embedding, ("average", "unfold"))
        self.layers = list(layers)
        self.patch_embedding = patch_embedding
        self.backbone = _create_backbone(backbone, self.layers, pre_trained)
        self.average = nn.AvgPool2d(kernel_size=3, stride=1, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the backbone's parameters."""
        return next((parameter.dtype for parameter in self.backbone.parameters()), torch.float32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of all patches.

        Args:
            images: Shape ``(batch, 3, height, width)``.

        Returns:
            Shape ``(batch, grid_height, grid_width, channels)``, float32.
        """
        if images.device.type != "cpu" or is_traced():
            return self._extract(images).permute(0, 2, 3, 1).contiguous()
        # CPUs convolve fastest with the channels of a position next to each other, as patches are stored, too.
        parts = images.contiguous(memory_format=torch.channels_last).split(CPU_BATCH)
        return torch.cat([self._extract(part).permute(0, 2, 3, 1) for part in parts])

    def _extract(self, images: torch.Tensor) -> torch.Tensor:
        try:
            by_layer = self.backbone(images.to(self.dtype))
        except (AssertionError, RuntimeError, ValueError):
            if not is_traced():
                self.check_size(*images.shape[-2:])
            raise
        features = [by_layer[layer].float() for layer in self.layers]
        del by_layer  # in half precision the features are copies
        size = features[0].shape[-2:]
        if self.patch_embedding == "average":
            features = [self.average(feature) for feature in features]
        else:
            # Pooling acts on channels and resizing on positions: both orders give the same, but this one is cheaper.
            features = [pool_channels(unfold(feature), POOLED_CHANNELS) for feature in features]
        resized = [F.interpolate(feature, size=size, mode="bilinear") for feature in features[1:]]
        stacked = torch.cat([features[0], *resized], dim=1)
        return stacked if self.patch_embedding == "average" else pool_channels(stacked, POOLED_CHANNELS)

    @torch.no_grad()
    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the grid of patches of an image of a size in pixels, by trying one.

        Raises:
            ValueError: See :meth:`check_size`.
        """
        device = next((parameter.device for parameter in self.backbone.parameters()), None)
        features = self(torch.zeros(1, 3, height, width, device=device))
        return features.shape[1], features.shape[2]

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size in pixels that the backbone takes and that is nearest to this one; if unknown, this one."""
        backbone = self.backbone
        if not isinstance(backbone, TimmBackbone) or backbone.takes(height, width):
            return height, width
        return next(iter(backbone.sizes_near(height, width)), (height, width))

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of a size in pixels that the backbone does not take.

        Raises:
            ValueError: If it does not take them; the message names sizes that it takes.
        """
        backbone = self.backbone
        if not isinstance(backbone, TimmBackbone) or backbone.takes(height, width):
            return
        sizes = ", ".join(f"{rows} x {columns}" for rows, columns in backbone.sizes_near(height, width))
        advice = f"Give it another size (height x width), for example {sizes}." if sizes else "Use another backbone."
        msg = f"The backbone '{backbone.name}' does not take images of {height} x {width} pixels. {advice}"
        raise ValueError(msg)


def unfold(features: torch.Tensor) -> torch.Tensor:
    """Put the values of each 3 x 3 neighborhood into the channels, zeros beyond the border.

    Args:
        features: Shape ``(batch, channels, height, width)``.

    Returns:
        Shape ``(batch, channels * 9, height, width)``, the nine values of a channel next to each other.
    """
    height, width = features.shape[-2:]
    padded = F.pad(features, (1, 1, 1, 1))
    shifted = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(shifted, dim=2).flatten(1, 2)


def pool_channels(features: torch.Tensor, size: int) -> torch.Tensor:
    """Pool the channels to a number of values as ``adaptive_avg_pool1d`` does.

    That operation cannot be exported unless one size divides the other; gathering the channels of each bin can.

    Args:
        features: Shape ``(batch, channels, height, width)``.
        size: Number of channels of the result.
    """
    channels = features.shape[1]
    if channels == size:
        return features
    bins = torch.arange(size, device=features.device)
    start, stop = bins * channels // size, -(-(bins + 1) * channels // size)
    pooled = torch.zeros_like(features[:, :1])
    for offset in range(int(-(-channels // size)) + 1):
        inside = (start + offset < stop).to(features.dtype)
        index = (start + offset).clamp(max=channels - 1)
        pooled = pooled + features[:, index] * inside[:, None, None]
    return pooled / (stop - start).to(features.dtype)[:, None, None]


def _create_backbone(backbone: str | nn.Module, layers: list[str], pre_trained: bool) -> nn.Module:
    """Create a module that returns the features of layers by name."""
    if not layers:
        msg = "layers must name at least one layer of the backbone, got none."
        raise ValueError(msg)
    if not isinstance(backbone, str):
        try:
            return TimmFeatureExtractor(backbone=backbone, layers=list(layers), pre_trained=pre_trained).eval()
        except (IndexError, AssertionError, ValueError) as error:
            msg = f"layers={layers} do not fit the backbone {type(backbone).__name__}: {error}"
            raise ValueError(msg) from error
    check_backbone(backbone)
    if pre_trained:
        check_weights(backbone)
    try:
        return TimmBackbone(backbone, layers, pre_trained).eval()
    except (OSError, RuntimeError) as error:  # a hub or file error, from whichever library timm uses for the weights
        msg = (
            f"The backbone '{backbone}' could not be loaded: {error}\n"
            "If this machine cannot reach the model hub, use weights on disk with backbone='local-dir:<folder>' "
            "(config.json and model.safetensors, as timm saves them), or pre_trained=False to load a checkpoint that "
            "contains its own weights."
        )
        raise RuntimeError(msg) from error
