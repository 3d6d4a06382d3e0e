# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Networks of timm whose layers give features on a grid, whatever family they belong to."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from itertools import islice
from typing import Any

import timm
import torch
from anomalib.models.components.feature_extractors.timm import _disable_pos_embed_antialiasing
from torch import nn

from anomalib_softpatch.backbones import find_source

# Numbers that the sides of images usually have to be multiples of, for networks that do not state theirs
USUAL_STEPS = (32, 28, 16, 14)


class TimmBackbone(nn.Module):
    """Layers of a network of timm, each as a map of features.

    timm has two ways to get features. Networks of stages return the features of each stage, some with the channels last
    according to their ``output_fmt``. Transformers, whose blocks all use the same tokens, have
    ``forward_intermediates``. The network itself shows which way it has. If the blocks of a transformer share a final
    norm, as in a ViT, it is applied to the features of each block.

    Args:
        name: Name of a timm model, or one with a prefix of :data:`~anomalib_softpatch.backbones.SOURCES`.
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
        stages = _without_weights(architecture, arguments)
        known = [info["module"] for info in stages.feature_info.info]
        missing = [layer for layer in layers if layer not in known]
        if missing:
            msg = f"layers={missing} not found in the backbone '{name}'. It has {', '.join(known)}."
            raise ValueError(msg)
        # In the order of the network, in which it returns them
        self.indices = sorted({known.index(layer) for layer in layers})
        self.layers = [known[index] for index in self.indices]
        self.has_tokens = hasattr(getattr(stages, "model", None), "forward_intermediates")
        self.channels_last = getattr(stages, "output_fmt", "NCHW") == "NHWC" and not self.has_tokens
        if self.has_tokens:
            # Blocks of one width share their norm
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
        """Return whether the network takes images of a size in pixels, by trying one."""
        parameter = next(self.parameters())
        try:
            features = self(torch.zeros(1, 3, height, width, dtype=parameter.dtype, device=parameter.device))
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError):
            return False
        return all(feature.ndim == 4 for feature in features.values())  # noqa: PLR2004

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return up to three sizes in pixels that the network takes, the nearest to those of the images first."""
        network = self.feature_extractor
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        steps = {max(patch) if isinstance(patch, Sequence) else patch} if patch else set(USUAL_STEPS)
        candidates = {tuple(network.pretrained_cfg["input_size"][1:])}
        for step in steps:
            rows = {max(height // step, 1) * step, -(-height // step) * step}
            columns = {max(width // step, 1) * step, -(-width // step) * step}
            candidates |= {(row, column) for row in rows for column in columns if height != width or row == column}
        nearest = sorted(candidates, key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size))
        return list(islice((size for size in nearest if self.takes(*size)), 3))


def _without_weights(architecture: str, arguments: dict[str, Any]) -> Any:
    """Create a network to ask for its layers. Random weights would take a second, so it has none if it can."""
    create = partial(timm.create_model, architecture, features_only=True, exportable=True, **arguments)
    try:
        with torch.device("meta"):
            return create()
    except RuntimeError:  # a network that computes with values while it is made
        return create()


def check_backbone(backbone: str) -> None:
    """Refuse a name that is not that of a backbone, without network access.

    Args:
        backbone: Name of a timm model, or one with a prefix of :data:`~anomalib_softpatch.backbones.SOURCES`.

    Raises:
        ValueError: If it is neither, or names a folder or file that does not exist.
    """
    architecture = find_source(backbone).architecture
    if ":" not in architecture and not timm.is_model(architecture):
        similar = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Similar names: {', '.join(similar)}." if similar else ""
        msg = f"backbone={backbone!r} is not a model of timm {timm.__version__}.{hint}"
        raise ValueError(msg)


def _create_transformer(architecture: str, pre_trained: bool, arguments: dict[str, Any]) -> nn.Module:
    """Create a transformer, for images of any size where the architecture allows it."""
    _disable_pos_embed_antialiasing()  # as in Anomalib: exported files have no antialiased resizing
    try:
        return timm.create_model(architecture, pretrained=pre_trained, **{"dynamic_img_size": True} | arguments)
    except TypeError:  # it has no such argument
        return timm.create_model(architecture, pretrained=pre_trained, **arguments)
