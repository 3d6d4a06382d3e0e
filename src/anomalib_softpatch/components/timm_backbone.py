# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Networks of timm whose layers give features on a grid, whatever family they are of."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

import timm
import torch
from anomalib.models.components.feature_extractors.timm import _disable_pos_embed_antialiasing
from torch import nn

from anomalib_softpatch.backbones import find_source

# Sides that images must be multiples of, where a network does not say so itself
USUAL_STEPS = (32, 28, 16, 14)


class TimmBackbone(nn.Module):
    """Layers of a network of timm, each as a map of features.

    timm gives features in two ways: networks of stages return those of each, some of them with the channels last, which
    their ``output_fmt`` says; transformers, whose tokens all blocks share, have ``forward_intermediates``. Which of
    both, the network knows, and not its name. Where the blocks of a transformer end in one norm, as those of a ViT, it
    is applied to the features of each.

    Args:
        name: Name of a timm model, or one that begins as :data:`~anomalib_softpatch.backbones.SOURCES` say.
        layers: Names of the layers.
        pre_trained: Use pre-trained weights.

    Raises:
        ValueError: If the network does not have these layers.
    """

    feature_extractor: Any  # a network of timm, whose parts depend on its family

    def __init__(self, name: str, layers: Sequence[str], pre_trained: bool) -> None:
        super().__init__()
        self.name = name
        source = find_source(name)
        architecture, arguments = source.architecture, dict(source.arguments)
        with torch.device("meta"):  # which layers there are needs no weights, whose random values take a second
            stages: Any = timm.create_model(architecture, features_only=True, exportable=True, **arguments)
        known = [info["module"] for info in stages.feature_info.info]
        missing = [layer for layer in layers if layer not in known]
        if missing:
            msg = f"layers={missing} not found in the backbone '{name}'. It has {', '.join(known)}."
            raise ValueError(msg)
        # The order of the network, in which it returns them
        self.indices = sorted({known.index(layer) for layer in layers})
        self.layers = [known[index] for index in self.indices]
        self.has_tokens = hasattr(getattr(stages, "model", None), "forward_intermediates")
        self.channels_last = getattr(stages, "output_fmt", "NCHW") == "NHWC" and not self.has_tokens
        if self.has_tokens:
            # They share their norm where they have one width
            self.norm = len({info["num_chs"] for info in stages.feature_info.info}) == 1
            self.feature_extractor = _create_transformer(architecture, pre_trained, arguments)
        else:
            arguments |= {"features_only": True, "exportable": True, "out_indices": self.indices}
            self.feature_extractor = timm.create_model(architecture, pretrained=pre_trained, **arguments)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of each layer, shape ``(batch, channels, height, width)``, by its name."""
        self.feature_extractor.eval()
        with torch.no_grad():
            if self.has_tokens:
                options = {"norm": self.norm, "stop_early": True, "output_fmt": "NCHW", "intermediates_only": True}
                features = self.feature_extractor.forward_intermediates(images, indices=self.indices, **options)
            else:
                features = self.feature_extractor(images)
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return dict(zip(self.layers, features, strict=True))

    def takes(self, height: int, width: int) -> bool:
        """Whether the network takes images of a size in pixels: it is tried."""
        parameter = next(self.parameters())
        try:
            features = self(torch.zeros(1, 3, height, width, dtype=parameter.dtype, device=parameter.device))
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError):
            return False
        return all(feature.ndim == 4 for feature in features.values())  # noqa: PLR2004

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return up to three sizes that the network takes, the nearest first.

        Args:
            height: Height in pixels of the images that there are.
            width: Their width.
        """
        network = self.feature_extractor
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        steps = {max(patch) if isinstance(patch, Sequence) else patch} if patch else set(USUAL_STEPS)
        candidates = {tuple(network.pretrained_cfg["input_size"][1:])}
        for step in steps:
            rows = {max(height // step, 1) * step, -(-height // step) * step}
            columns = {max(width // step, 1) * step, -(-width // step) * step}
            if height == width:
                candidates |= {(side, side) for side in rows}
            else:
                candidates |= {(row, column) for row in rows for column in columns}
        nearest = sorted(candidates, key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size))
        return list(islice((size for size in nearest if self.takes(*size)), 3))


def check_backbone(backbone: str) -> None:
    """Refuse what names no network, or what is not there; it takes no network.

    Args:
        backbone: Name of a timm model, or one that begins as :data:`~anomalib_softpatch.backbones.SOURCES` say.

    Raises:
        ValueError: If it is neither, or names what is not there.
    """
    architecture = find_source(backbone).architecture
    if ":" not in architecture and not timm.is_model(architecture):
        similar = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Similar names: {', '.join(similar)}." if similar else ""
        msg = f"backbone={backbone!r} is not a model of timm {timm.__version__}.{hint}"
        raise ValueError(msg)


def _create_transformer(architecture: str, pre_trained: bool, arguments: dict[str, Any]) -> nn.Module:
    """Create a transformer, for images of any size that it can be had for."""
    _disable_pos_embed_antialiasing()  # as Anomalib does: exported files have no antialiased resizing
    try:
        return timm.create_model(architecture, pretrained=pre_trained, **{"dynamic_img_size": True} | arguments)
    except TypeError:  # it has no such argument
        return timm.create_model(architecture, pretrained=pre_trained, **arguments)
