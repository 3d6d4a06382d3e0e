# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints: how a model marks its own, why one does not fit a model, and how to make a model from one.

What a file may require of the model that uses it is also here. It applies to the files of memory banks, too.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor

from anomalib_softpatch._version import __version__
from anomalib_softpatch.backbones import portable_name
from anomalib_softpatch.components.hashing import hash_module
from anomalib_softpatch.components.tiles import tiles_of
from anomalib_softpatch.images.reading import EIGHT_BITS
from anomalib_softpatch.integration.checkpoint_io import CheckpointIO, readable, use_own_checkpoint_io
from anomalib_softpatch.integration.pre_processing import infer_as_trained
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor

if TYPE_CHECKING:
    from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel

    _Module = AnomalibModule
else:  # a mixin at run time: Anomalib finds models among the direct subclasses of AnomalibModule only
    _Module = object

logger = logging.getLogger(__name__)

PACKAGE = __name__.partition(".")[0] + "."
# Entry that marks a checkpoint as ours. Checkpoints from before 0.1.0 do not have it, but still load
KEY = "anomalib_softpatch"
FORMAT = 3  # raise it if an older version could not, or not correctly, use a newer one's checkpoints
FORMAT_OF_EIGHT_BITS = 2  # of models that saw only images of 8 bits, which older versions can use
OWN_STATE = {"model.memory_bank", "model.weights"}  # no model of Anomalib has both
EXTRACTOR = "model.feature_extractor."
# Options that read_options may change. No other options of a file are passed on to load_from_checkpoint
OPTIONS_OF_FILES = {
    "backbone", "pre_trained", "discriminator", "discriminators", "classification_threshold", "segmentation_threshold",
    "min_images", "neighborhood",
}  # fmt: skip
EXTRA_STATE = "model._extra_state"  # torch's name for the result of get_extra_state
# Parts of a model that change scores. A checkpoint has their settings, but not their class
COMPONENTS = ("pre_processor", "post_processor")
POST_PROCESSORS = {f"{each.__module__}.{each.__qualname__}": each for each in (PostProcessor, LabelFreePostProcessor)}

BACKBONE_SHAPES = "backbone_shapes"  # for a file with the backbone's weights
SCORE_SMOOTHING = "score_smoothing"  # files from before 0.2 do not name it: there was none
BACKBONE_HASH = "backbone_sha256"  # for a file without the backbone's weights
TILES = "tiles"  # for a model that already has a tiler of its own

# What a file may require of the model that uses it -> the model's own value
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
# Removed since version 0.2, whose checkpoints still name them
REMOVED_OPTIONS = frozenset({"prototypes"})
REMOVED_DISCRIMINATORS = frozenset({"simplified_lof", "ensemble"})
MODELS: dict[str, Any] = {}  # the classes of this package by name; they add themselves


class CheckpointMixin(_Module):
    """Mark checkpoints as ours, and refuse those that do not fit the model."""

    model: SoftPatchModel
    largest_value: int

    def __init_subclass__(cls, **options: Any) -> None:
        """Add a model of this package to :data:`MODELS`."""
        super().__init_subclass__(**options)
        if issubclass(cls, AnomalibModule) and cls.__module__.startswith(PACKAGE):
            MODELS[cls.__name__] = cls

    def setup(self, stage: str) -> None:
        """Have checkpoints written completely or not at all, and read on any device."""
        super().setup(stage)
        use_own_checkpoint_io(self.trainer.strategy, self.checkpoint_safe_globals())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        newest = self.largest_value > EIGHT_BITS or self.model.defects.numel() or self.model.ignored.numel()
        checkpoint[KEY] = {
            "format": FORMAT if newest else FORMAT_OF_EIGHT_BITS,
            "version": __version__,
            "model": own_name(type(self)),
            "components": {name: class_path(getattr(self, name)) for name in COMPONENTS},
            "largest_value": self.largest_value,
        }
        if name := portable_name(self.hparams.get("backbone", "")):
            checkpoint[KEY]["architecture"] = name  # other machines may not have the folder of the weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, of a newer version, or one of other options."""
        reason = self._reason_against(checkpoint)
        if reason:
            path = None
            with suppress(RuntimeError):  # load_from_checkpoint has no trainer, but its caller knows the path
                path = self.trainer.ckpt_path
            msg = f"{path or 'The checkpoint'} {reason}"
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        self.largest_value = checkpoint.get(KEY, {}).get("largest_value", EIGHT_BITS)
        infer_as_trained(self.pre_processor)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Anomalib's signature differs from Lightning's, too
        cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """Make a model from a checkpoint, see Anomalib's ``AnomalibModule.load_from_checkpoint``.

        Options in ``kwargs`` replace those of the checkpoint. The backbone's weights come from the checkpoint, and are
        not loaded from elsewhere.

        Raises:
            TypeError: If the model does not have a given option.
            ValueError: If the checkpoint cannot be read (safely), or does not fit.
        """
        others = inspect.signature(super().load_from_checkpoint).parameters
        # Lightning would ignore unknown options
        inspect.signature(cls).bind_partial(**{name: value for name, value in kwargs.items() if name not in others})
        if os.path.isfile(checkpoint_path):  # noqa: PTH113  # may be a URL or an open file
            mark, options = _read(checkpoint_path)
            theirs = OPTIONS_OF_FILES - ({"backbone", "pre_trained"} if "backbone" in kwargs else set())
            kwargs = {name: value for name, value in options.items() if name in theirs} | kwargs
            post_processor = mark.get("components", {}).get("post_processor")
            if post_processor in POST_PROCESSORS:
                kwargs.setdefault("post_processor", POST_PROCESSORS[post_processor]())
        with readable(checkpoint_path):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def save_changed(self, source: str | Path, target: str | Path) -> None:
        """Write a checkpoint with the model's state as it is now.

        Args:
            source: Checkpoint that the model was loaded from, which also has the trainer's state.
            target: File to write or replace. It never appears half-written.
        """
        plugin = CheckpointIO(extra_safe_globals=self.checkpoint_safe_globals())
        checkpoint = plugin.load_checkpoint(source)
        checkpoint["state_dict"] = self.state_dict()
        self.on_save_checkpoint(checkpoint)
        plugin.save_checkpoint(checkpoint, target)

    def _reason_against(self, checkpoint: dict[str, Any]) -> str:
        """Say why a checkpoint does not fit, as the end of a sentence; empty if it does fit."""
        state = checkpoint.get("state_dict", {})
        mark = checkpoint.get(KEY, {})
        if newer := reason_against_format(mark.get("format", 0), FORMAT, mark.get("version")):
            return newer
        if not state.keys() >= OWN_STATE:
            return (
                "was not written by SoftPatch or SoftPatchPlus: it has no weighted memory bank. Use the model that it "
                "was trained with."
            )
        if reason := self._reason_against_components(checkpoint):
            return reason
        options = checkpoint.get("hyper_parameters", {})
        requirements: dict[str, Any] = {}
        if "layers" in options:
            requirements["layers"] = list(options["layers"])
        if "patch_embedding" in options:
            requirements["patch_embedding"] = options["patch_embedding"]
        requirements[SCORE_SMOOTHING] = float(options.get(SCORE_SMOOTHING, 0.0))
        extractor = {name.removeprefix(EXTRACTOR): value for name, value in state.items() if name.startswith(EXTRACTOR)}
        requirements[BACKBONE_SHAPES] = shapes(extractor)
        if self.model.tiler is not None and TILES in state.get(EXTRA_STATE, {}):
            requirements[TILES] = state[EXTRA_STATE][TILES]
        return reason_against(self, mark.get("model"), options.get("backbone"), requirements)

    def _reason_against_components(self, checkpoint: dict[str, Any]) -> str:
        """Say why the pre- or post-processor does not fit the checkpoint, as the end of a sentence."""
        written = checkpoint.get(KEY, {}).get("components")
        if written is None:  # before 0.3
            stored = checkpoint.get("anomalib_pre_processor_config", {"transform": {}})
            if stored["transform"] is None:  # there was none, or one that the checkpoint could not hold
                logger.warning(
                    "The checkpoint has no transform of images, so they are scored as they are. If the model was "
                    "trained with one, train it again."
                )
            return ""
        for name in COMPONENTS:
            own = class_path(getattr(self, name))
            if written[name] not in {None, own}:
                return (
                    f"was made with the {name} {written[name]}, but the model has {own}: give it the same, "
                    f"load_from_checkpoint(path, {name}=...) or --model.{name}."
                )
        return ""


def class_path(component: object) -> str | None:
    """Return the full name of an object's class; ``None`` for ``None``."""
    return None if component is None else f"{type(component).__module__}.{type(component).__qualname__}"


def load_model(path: str | Path) -> AnomalibModule:
    """Make the model that a checkpoint was written by, on the CPU.

    Args:
        path: Checkpoint that ``anomalib train`` or an ``Engine`` wrote, of a model whose backbone has a name. The
            backbone's weights come from the checkpoint, and are not loaded from elsewhere.

    Returns:
        The trained model.

    Raises:
        ValueError: If the checkpoint cannot be read (safely), or is another model's.

    Example:
        >>> model = load_model("results/SoftPatch/MVTecAD/screw/latest/weights/lightning/model.ckpt")  # doctest: +SKIP
    """
    name, _ = read_options(path)
    if name not in MODELS:
        msg = f"{path} is not a checkpoint of {' or '.join(MODELS)}: it names its model as {name!r}."
        raise ValueError(msg)
    return MODELS[name].load_from_checkpoint(path)


def read_options(path: str | Path) -> tuple[str | None, dict[str, Any]]:
    """Return which model a checkpoint was written by, and the options that make the same model on this machine.

    Args:
        path: Checkpoint file.

    Returns:
        Name of the model, ``None`` if the file does not name it; and its options by name.

    Raises:
        ValueError: If it cannot be read (safely).
    """
    mark, options = _read(path)
    return mark.get("model"), options


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entry that marks a checkpoint as ours, and its options, see :func:`read_options`."""
    with readable(path):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # its tensors are not read
    if not isinstance(checkpoint, dict):
        return {}, {}
    mark, options = checkpoint.get(KEY, {}), current_options(checkpoint.get("hyper_parameters", {}))
    backbone = options.get("backbone")
    if backbone is not None:
        options["pre_trained"] = False  # the weights are in the file
        if "architecture" in mark and portable_name(backbone) is None:
            options["backbone"] = mark["architecture"]
    return mark, options


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the options of a checkpoint of any version into those of this version.

    They only matter for building a memory bank. The checkpoint's scores depend on its own memory bank, which stays.
    """
    current = {name: value for name, value in options.items() if name not in REMOVED_OPTIONS}
    current |= {name: 0.0 for name, value in current.items() if name.endswith("threshold") and value == "auto"}
    if current.get("discriminator") in REMOVED_DISCRIMINATORS:
        current["discriminator"] = "knn"
    if REMOVED_DISCRIMINATORS & set(current.get("discriminators") or ()):
        kept = [name for name in current["discriminators"] if name not in REMOVED_DISCRIMINATORS]
        current["discriminators"] = kept or ["knn"]
    if "classification_threshold" in current and "min_images" not in current:  # SoftPatchPlus from before 0.3
        current |= {"min_images": 1, "neighborhood": current.get("neighborhood", 0)}
    return current


def reason_against_format(number: int, known: int, version: str | None) -> str:
    """Say why a file of a format newer than the newest known one cannot be read; empty if it can."""
    if number <= known:
        return ""
    return (
        f"was written by anomalib-softpatch {version} in format {number}. This is anomalib-softpatch {__version__}, "
        f"which knows formats up to {known}: install the newer version."
    )


def reason_against(
    model: CheckpointMixin, writer: str | None, backbone: str | None, requirements: Mapping[str, Any]
) -> str:
    """Say why a model cannot use a file, as the end of a sentence that begins with the file's path; empty if it can.

    Args:
        model: The model.
        writer: Name of the class of the model that wrote the file; ``None`` if it does not name it.
        backbone: Name of that model's backbone; ``None`` for a module.
        requirements: What both models must have in common, by the names of :data:`REQUIREMENTS`.
    """
    name = own_name(type(model))
    if writer in MODELS and writer != name:
        return f"was written by {writer}, but the model is {name}: use {writer}."
    for requirement, value in requirements.items():
        own = REQUIREMENTS[requirement](model)
        if own == value:
            continue
        if requirement in {BACKBONE_SHAPES, BACKBONE_HASH}:
            return (
                f"was made with another backbone ({backbone or 'a custom module'}) than the model's "
                f"({model.hparams.get('backbone', 'a module')}), or with other weights: give the model the same."
            )
        return f"was made with {requirement}={value}, but the model has {requirement}={own}: give it the same."
    return ""


def own_name(model_class: type) -> str:
    """Return the name of the class of this package, even for a user's subclass of it."""
    return next(each.__name__ for each in model_class.__mro__ if each.__module__.startswith(PACKAGE))


def shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a state by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
