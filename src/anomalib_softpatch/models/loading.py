# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Loading a checkpoint without saying which model, backbone or layers it is of."""

from pathlib import Path

from anomalib.models.components import AnomalibModule

from anomalib_softpatch.models.checkpoint import read_options
from anomalib_softpatch.models.soft_patch import SoftPatch
from anomalib_softpatch.models.soft_patch_plus import SoftPatchPlus

MODELS = {model.__name__: model for model in (SoftPatch, SoftPatchPlus)}


def load_model(path: str | Path) -> AnomalibModule:
    """Make the model that a checkpoint was written by, on the CPU.

    Args:
        path: Checkpoint that ``anomalib train`` or an ``Engine`` wrote. Its backbone must have had a name; weights of
            the backbone come with the checkpoint, so that none are looked for elsewhere.

    Returns:
        The trained model.

    Raises:
        ValueError: If it cannot be read, not safely, or is another model's.

    Example:
        >>> model = load_model("results/SoftPatch/MVTecAD/screw/latest/weights/lightning/model.ckpt")  # doctest: +SKIP
    """
    name, _ = read_options(path)
    if name not in MODELS:
        msg = f"{path} is no checkpoint of {' or '.join(MODELS)}: it says that its model is {name!r}."
        raise ValueError(msg)
    return MODELS[name].load_from_checkpoint(path)
