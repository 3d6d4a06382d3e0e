# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a model can use what another one has left in a file, a checkpoint or a memory bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from anomalib_softpatch._version import __version__
from anomalib_softpatch.components.hashing import hash_module
from anomalib_softpatch.components.tiles import tiles_of
from anomalib_softpatch.integration.registration import MODELS

if TYPE_CHECKING:
    from anomalib_softpatch.models.checkpoint import CheckpointMixin

BACKBONE_SHAPES = "backbone_shapes"  # of a file that brings the backbone's weights
SCORE_SMOOTHING = "score_smoothing"  # files of before 0.2 do not name it: there was none
BACKBONE_HASH = "backbone_sha256"  # of a file that does not
TILES = "tiles"  # of a model that has a tiler of its own already

# What a file may ask of the model that uses it -> how the model answers
REQUIREMENTS: dict[str, Callable[[CheckpointMixin], Any]] = {
    "layers": lambda model: list(model.model.feature_extractor.layers),
    "patch_embedding": lambda model: model.model.feature_extractor.patch_embedding,
    "precision": lambda model: str(model.model.feature_extractor.dtype).removeprefix("torch."),
    SCORE_SMOOTHING: lambda model: float(model.model.score_smoothing),
    "memory_banks": lambda model: len(model.model.memory_bank_builder.thresholds),
    TILES: lambda model: tiles_of(model.model.tiler),
    BACKBONE_SHAPES: lambda model: shapes(model.model.feature_extractor.state_dict()),
    BACKBONE_HASH: lambda model: hash_module(model.model.feature_extractor.backbone),
}


# Of version 0.2, whose checkpoints still name them
GONE_OPTIONS = frozenset({"prototypes"})
GONE_DISCRIMINATORS = frozenset({"simplified_lof", "ensemble"})


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a checkpoint as this version has them.

    They say how a memory bank would be built. How a checkpoint scores is in its memory bank, which stays as it is.

    Args:
        options: Options by name, as some version saved them.

    Returns:
        Options by name.
    """
    current = {name: value for name, value in options.items() if name not in GONE_OPTIONS}
    current |= {name: 0.0 for name, value in current.items() if name.endswith("threshold") and value == "auto"}
    if GONE_DISCRIMINATORS & {current.get("discriminator")}:
        current["discriminator"] = "knn"
    if GONE_DISCRIMINATORS & set(current.get("discriminators") or ()):
        kept = [name for name in current["discriminators"] if name not in GONE_DISCRIMINATORS]
        current["discriminators"] = kept or ["knn"]
    if "classification_threshold" in current and "min_images" not in current:  # SoftPatchPlus of before 0.3
        current |= {"min_images": 1, "neighborhood": current.get("neighborhood", 0)}
    return current


@dataclass(frozen=True)
class Origin:
    """What a file says of the model that wrote it.

    Attributes:
        model: Name of the model's class.
        backbone: Name of its backbone; ``None`` for a module.
        requirements: What a model must have in common with it, by the names of :data:`REQUIREMENTS`.
    """

    model: str | None = None
    backbone: str | None = None
    requirements: Mapping[str, Any] = field(default_factory=dict)


def reason_against_format(number: int, known: int, version: str | None) -> str:
    """Say why a file cannot be read by this version.

    Args:
        number: Number of the file's format.
        known: Number of the newest format that this version reads.
        version: Version of this package that wrote it.

    Returns:
        End of a sentence that begins with the file's path; empty if it can be read.
    """
    if number <= known:
        return ""
    return (
        f"was written by anomalib-softpatch {version} in format {number}. This is anomalib-softpatch {__version__}, "
        f"which knows formats up to {known}: install the newer version."
    )


def reason_against(model: CheckpointMixin, origin: Origin) -> str:
    """Say why a model cannot use a file.

    Args:
        model: The model.
        origin: What the file says.

    Returns:
        End of a sentence that begins with the file's path; empty if the model can use it.
    """
    name = own_name(type(model))
    if origin.model in MODELS and origin.model != name:
        return f"was written by {origin.model}, but the model is {name}: use {origin.model}."
    for requirement, value in origin.requirements.items():
        own = REQUIREMENTS[requirement](model)
        if own == value:
            continue
        if requirement in {BACKBONE_SHAPES, BACKBONE_HASH}:
            return (
                f"was made with another backbone ({origin.backbone or 'a module of its own'}) than the model's "
                f"({model.hparams.get('backbone', 'a module')}), or with other weights: give the model the same."
            )
        return f"was made with {requirement}={value}, but the model has {requirement}={own}: give it the same."
    return ""


def own_name(model_class: type) -> str:
    """Return the name of the class of this package, also for a user's subclass of it."""
    package = __name__.partition(".")[0] + "."
    return next(each.__name__ for each in model_class.__mro__ if each.__module__.startswith(package))


def shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a state by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
