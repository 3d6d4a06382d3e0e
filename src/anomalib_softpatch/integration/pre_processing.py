# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A pre-processor that does the same in exported and loaded models as in the fit.

Anomalib's has two transforms: one for the trainer's loops, and one for ``model(images)`` and exported files, which
resizes without antialiasing. Memory bank and threshold come from the first, so large images would get other scores with
the second. Here, the second does the same as the first, with operations that every runtime has.
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

FILTERS = {"bilinear", "bicubic"}  # that torch resizes with antialiasing, apart from Lanczos
# Anomalib can write other transforms into checkpoints, but not this one, which is just as simple
TRANSFORM_REGISTRY.register(Pad, "torchvision.transforms.v2.Pad")


class ExportableResize(Resize):  # type: ignore[misc]  # torchvision has no types
    """Torchvision's ``Resize``, recorded in a graph as matrix products if it is antialiased."""

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
    """Say why a trained model could not prepare images as its fit did, and what to do; empty if it can."""
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
            "CenterCrop, Pad, Grayscale and Normalize of torchvision.transforms.v2. Random transforms belong in the "
            "data's train_augmentations."
        )
    steps = _steps(transform)
    resizes = [index for index, step in enumerate(steps) if isinstance(step, Resize)]
    before = [step for step in steps[: max(resizes, default=0)] if not isinstance(step, Normalize | Grayscale)]
    if before:
        return (
            f"The pre-processor has {type(before[0]).__name__} before a Resize, but Anomalib's data loaders resize "
            "first, so the trained model would see other images than the fit. Put one Resize first."
        )
    return ""


def check_exportable(pre_processor: nn.Module | None) -> None:
    """Refuse a pre-processor whose work an exported file could not do.

    Raises:
        ValueError: If it is one.
    """
    for step in _steps(getattr(pre_processor, "transform", None)):
        if not isinstance(step, Resize):
            continue
        if step.size is None or len(step.size) == 1:
            msg = f"Exported files resize to one size: give Resize a height and a width instead of {step.size}."
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
