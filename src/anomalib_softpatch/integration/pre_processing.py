# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A pre-processor that does in exported and loaded models what it did in the fit.

Anomalib's has two transforms: one for the trainer's loops, and one for ``model(images)`` and exported files, which
resizes without antialiasing. Memory bank and threshold come from the first, so that a large image got other scores from
the second. Here the second is the first, with operations that every runtime has.
"""

import copy
from typing import Any, Literal, cast

from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils._transform_registry import TRANSFORM_REGISTRY
from anomalib.pre_processing.utils.spec import transform_to_spec
from anomalib.pre_processing.utils.transform import convert_center_crop_transform
from PIL.Image import Resampling
from torch import nn
from torchvision.transforms.v2 import Compose, Grayscale, InterpolationMode, Normalize, Pad, Resize, Transform
from typing_extensions import override

from anomalib_softpatch.components.resizing import resize_antialiased
from anomalib_softpatch.components.tracing import is_traced

FILTERS = {"bilinear", "bicubic"}  # that torch resizes with antialiasing, but for Lanczos'
# Anomalib writes some transforms into checkpoints, but not this one, which is as plain as the others
TRANSFORM_REGISTRY.register(Pad, "torchvision.transforms.v2.Pad")


class ExportableResize(Resize):  # type: ignore[misc]  # torchvision says nothing of types
    """Torchvision's ``Resize``, recorded in a graph as products of matrices where it is antialiased."""

    @override
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        mode = _mode(self)
        if self.antialias and mode in FILTERS and len(self.size) == 2 and is_traced():  # noqa: PLR2004
            return resize_antialiased(inpt, tuple(self.size), cast("Literal['bilinear', 'bicubic']", mode))
        return super().transform(inpt, params)


def infer_as_trained(pre_processor: nn.Module | None) -> None:
    """Have ``model(images)`` and exported files prepare images as the trainer's loops do.

    A pre-processor of Anomalib is changed in place; any other module is left as it is.
    """
    if isinstance(pre_processor, PreProcessor) and pre_processor.transform is not None:
        pre_processor.export_transform = convert_center_crop_transform(_exportable(pre_processor.transform))


def reason_against_pre_processor(pre_processor: nn.Module | None) -> str:
    """Say why a model could not be used later as it was fitted, and what to do; empty if it could."""
    if pre_processor is None:
        return ""
    if not (hasattr(pre_processor, "checkpoint_config") and hasattr(pre_processor, "load_checkpoint_config")):
        return (
            f"The pre-processor {type(pre_processor).__name__} would be lost: a checkpoint cannot hold it. Use "
            "anomalib.pre_processing.PreProcessor."
        )
    transform = getattr(pre_processor, "transform", None)
    try:
        transform_to_spec(transform)
    except ValueError as error:
        return (
            f"The transform of the pre-processor would be lost: a checkpoint cannot hold it ({error}). Use Resize, "
            "CenterCrop, Pad, Grayscale and Normalize of torchvision.transforms.v2; what is random belongs into the "
            "data's train_augmentations."
        )
    steps = _steps(transform)
    resizes = [index for index, step in enumerate(steps) if isinstance(step, Resize)]
    before = [step for step in steps[: max(resizes, default=0)] if not isinstance(step, Normalize | Grayscale)]
    if before:
        return (
            f"The pre-processor has {type(before[0]).__name__} before a Resize, but Anomalib's data loaders resize "
            "first, so that a trained model would see other images than the fit. Put one Resize first."
        )
    return ""


def check_exportable(pre_processor: nn.Module | None) -> None:
    """Refuse a pre-processor that an exported file would not do the same as.

    Raises:
        ValueError: If it is one.
    """
    for step in _steps(getattr(pre_processor, "transform", None)):
        if not isinstance(step, Resize):
            continue
        if step.size is None or len(step.size) == 1:
            msg = f"Exported files resize to one size: give Resize a height and a width in place of {step.size}."
            raise ValueError(msg)
        if step.antialias and _mode(step) not in FILTERS | {"nearest", "nearest-exact"}:
            msg = f"Exported files cannot resize with interpolation={_mode(step)!r}: use bilinear or bicubic."
            raise ValueError(msg)


def _steps(transform: Transform | None) -> list[Transform]:
    if isinstance(transform, Compose):
        return [step for each in transform.transforms for step in _steps(each)]
    return [] if transform is None else [transform]


def _exportable(transform: Transform) -> Transform:
    transform = copy.deepcopy(transform)
    if isinstance(transform, Compose):
        transform.transforms = [_exportable(each) for each in transform.transforms]
    elif type(transform) is Resize:
        transform.__class__ = ExportableResize
    return transform


def _mode(resize: Resize) -> str:
    """Return the name of an interpolation, which torchvision takes as a name, an enumerator or Pillow's number."""
    if isinstance(resize.interpolation, int):
        return Resampling(resize.interpolation).name.lower()
    return InterpolationMode(resize.interpolation).value
