# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Loading a checkpoint without saying which model, backbone or layers it is of."""

from pathlib import Path

import torch
from anomalib.models.components import AnomalibModule

from anomalib_softpatch.integration.checkpoint_io import readable
from anomalib_softpatch.models.checkpoint import KEY
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
    with readable(path):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    name = checkpoint.get(KEY, {}).get("model") if isinstance(checkpoint, dict) else None
    if name not in MODELS:
        msg = f"{path} is no checkpoint of {' or '.join(MODELS)}: it says that its model is {name!r}."
        raise ValueError(msg)
    backbone = checkpoint.get("hyper_parameters", {}).get("backbone")
    # A folder of weights may have stayed on another machine, and its architecture with it.
    return MODELS[name].load_from_checkpoint(path, **({"pre_trained": False} if backbone else {}))
