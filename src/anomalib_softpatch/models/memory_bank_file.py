# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Memory banks as safetensors files, for exchange: they hold numbers and texts only, and loading them runs no code.

Tensors: ``memory_bank`` (patches x channels, one more in files of version 0.2), ``weights`` and ``radii`` (patches; no
radii before 0.3), ``banks`` (first row and row after the last of each bank) and ``post_processor.*`` (thresholds and
ranges of the scores). Metadata, as JSON texts: ``format``, ``version`` of this package, ``model``, ``backbone``,
``input_size`` (height and width, or null), ``largest_value`` (white in the training images) and what a model must have
in common with the trained one: ``layers``, ``patch_embedding``, ``precision``, ``score_smoothing``, ``tiles`` and
``backbone_sha256``, a hash of the backbone's weights, which are not in the file.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anomalib_softpatch._version import __version__
from anomalib_softpatch.components import MemoryBank
from anomalib_softpatch.components.hashing import describe
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.images.reading import EIGHT_BITS
from anomalib_softpatch.models.checkpoint import (
    BACKBONE_HASH,
    REQUIREMENTS,
    SCORE_SMOOTHING,
    TILES,
    own_name,
    reason_against,
    reason_against_format,
)

if TYPE_CHECKING:
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it if an older version could not, or not correctly, read a newer one's files
POST_PROCESSOR = "post_processor."
TENSORS = ("memory_bank", "weights", "banks")
REQUIRED = ("layers", "patch_embedding", "precision", BACKBONE_HASH)  # of the model that loads the file


def save_memory_bank(model: DenoisingMixin, path: str | Path) -> Path:
    """Write the memory bank of a trained model to a safetensors file.

    Args:
        model: Trained :class:`SoftPatch` or :class:`SoftPatchPlus`.
        path: File to write or replace, for example ``bank.safetensors``. It never appears half-written.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the model has not been trained, or its post-processor has no threshold.

    Example:
        >>> save_memory_bank(model, "bank.safetensors")  # doctest: +SKIP
    """
    torch_model = model.model
    if not torch_model.bank_ranges:
        msg = "The memory bank is empty: train the model (fit), or load a trained one with load_from_checkpoint."
        raise ValueError(msg)
    unset = _unset_values(_post_processor_state(model))
    if unset:
        msg = (
            f"The model has no decision threshold: {', '.join(unset)} of its post-processor are not finite. Validate "
            "it (engine.validate) first, or make it with post_processor=False."
        )
        raise ValueError(msg)
    if torch_model.defects.numel() or torch_model.ignored.numel():
        msg = (
            "The model was taught defects or parts of images to ignore, which a file with a memory bank cannot hold: "
            "share its checkpoint, or an exported file."
        )
        raise ValueError(msg)
    tensors = {
        "memory_bank": torch_model.memory_bank,
        "weights": torch_model.weights,
        "radii": torch_model.radii,
        "banks": torch.tensor(torch_model.bank_ranges),
        **{POST_PROCESSOR + name: value for name, value in _post_processor_state(model).items()},
    }
    metadata = {
        "format": FORMAT,
        "version": __version__,
        "model": own_name(type(model)),
        "backbone": model.hparams.get("backbone"),
        "input_size": model.input_size and list(model.input_size),
        "largest_value": model.largest_value,
        **{name: REQUIREMENTS[name](model) for name in (*REQUIRED, SCORE_SMOOTHING, TILES)},
    }
    with atomic_output(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {name: json.dumps(value) for name, value in metadata.items()},
        )
    return Path(path)


def load_memory_bank(model: DenoisingMixin, path: str | Path) -> None:
    """Give a model the memory bank of a safetensors file.

    Args:
        model: :class:`SoftPatch` or :class:`SoftPatchPlus` with the backbone, layers, patch embedding, precision and
            number of banks of the trained model. Its own memory bank is replaced.
        path: File that :func:`save_memory_bank` wrote.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is another kind of file, or does not fit the model. Then the model does not change.

    Example:
        >>> model = SoftPatch(backbone="resnet18")  # doctest: +SKIP
        >>> load_memory_bank(model, "bank.safetensors")  # doctest: +SKIP
    """
    path = Path(path)
    tensors, metadata = _read(path)
    tensors.setdefault("radii", torch.zeros_like(tensors["weights"]))
    _check_tensors(path, tensors)
    requirements = {name: metadata[name] for name in REQUIRED} | {
        SCORE_SMOOTHING: metadata.get(SCORE_SMOOTHING, 0.0),
        TILES: metadata.get(TILES),
        "memory_banks": len(tensors["banks"]),
    }
    if reason := reason_against(model, metadata["model"], metadata.get("backbone"), requirements):
        msg = f"{path} {reason}"
        raise ValueError(msg)
    stored = _stored_post_processor(path, tensors, model)
    banks = tuple((start, stop) for start, stop in tensors["banks"].tolist())
    torch_model = model.model
    channels = torch_model.extract(torch.zeros(1, 3, *(model.input_size or (256, 256)), device=model.device)).shape[-1]
    if tensors["memory_bank"].shape[1] not in {channels, channels + 1}:  # one more in files of version 0.2
        msg = f"{path} has features of {tensors['memory_bank'].shape[1]} channels, but the model's have {channels}."
        raise ValueError(msg)
    size = model.input_size and list(model.input_size)
    if metadata["input_size"] != size:
        logger.warning("%s is for images of %s pixels, but the model gets %s.", path, metadata["input_size"], size)

    features, weights, radii = (tensors[name].to(model.device) for name in ("memory_bank", "weights", "radii"))
    torch_model.set_memory_bank(MemoryBank(features, weights, radii, banks))
    model.largest_value = metadata.get("largest_value", EIGHT_BITS)
    model.mark_fitted(True)
    state = _post_processor_state(model)
    for name, tensor in stored.items():
        state[name].copy_(tensor)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not path.is_file():
        msg = f"{path} is not a file. Give one that save_memory_bank wrote."
        raise FileNotFoundError(msg)
    try:
        with safe_open(path, "pt") as file:
            metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dictionary
    except (SafetensorError, json.JSONDecodeError) as error:
        msg = f"{path} is not a memory bank, or is incomplete ({error}): copy it again from where it came from."
        raise ValueError(msg) from error
    number = metadata.get("format") if isinstance(metadata.get("format"), int) else None
    if number and (reason := reason_against_format(number, FORMAT, metadata.get("version"))):
        msg = f"{path} {reason}"
        raise ValueError(msg)
    missing = [name for name in TENSORS if name not in tensors]
    missing += [name for name in ("model", "input_size", *REQUIRED) if name not in metadata]
    missing += ["format"] if number is None else []
    if missing:
        msg = f"{path} is not a memory bank of SoftPatch or SoftPatchPlus: it lacks {', '.join(missing)}."
        raise ValueError(msg)
    return tensors, metadata


def _check_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse values that no fit gives, which would cause errors or wrong scores later."""
    features, weights, banks = (tensors[name] for name in TENSORS)
    radii = tensors["radii"]
    rows = len(features) if features.ndim else 0
    sound = (
        features.ndim == 2  # noqa: PLR2004
        and features.dtype == weights.dtype == radii.dtype == torch.float32
        and weights.shape == radii.shape == (rows,)
        and bool(features.isfinite().all())
        and all(bool(values.isfinite().all() and (values >= 0).all()) for values in (weights, radii))
        and banks.dtype == torch.int64
        and banks.shape in {(1, 2), (2, 2)}
        # The first bank begins with the first row, the last one ends with the last row, and together they have all rows
        and int(banks[0, 0]) == 0
        and int(banks[-1, 1]) == rows
        and 0 <= int(banks[-1, 0]) <= int(banks[0, 1]) <= rows
        and bool((banks[:, 0] < banks[:, 1]).all())
    )
    if not sound:
        msg = (
            f"{path} is damaged: its features ({describe(features)}), weights ({describe(weights)}), radii "
            f"({describe(radii)}) and banks ({banks.tolist()}) do not fit together or are not finite. Write it again "
            "with save_memory_bank."
        )
        raise ValueError(msg)


def _post_processor_state(model: DenoisingMixin) -> dict[str, torch.Tensor]:
    return {} if model.post_processor is None else model.post_processor.state_dict()


def _stored_post_processor(
    path: Path, tensors: dict[str, torch.Tensor], model: DenoisingMixin
) -> dict[str, torch.Tensor]:
    """Return a file's values for the model's post-processor, by name; refuse missing and useless ones."""
    stored = {}
    for name, own in _post_processor_state(model).items():
        tensor = tensors.get(POST_PROCESSOR + name)
        if tensor is None or tensor.shape != own.shape:
            problem = "is missing" if tensor is None else f"has another shape ({describe(tensor)})"
            msg = f"{path} is damaged: the post-processor's value {name!r} {problem}. Write it again."
            raise ValueError(msg)
        stored[name] = tensor
    unset = _unset_values(stored)
    if unset:
        msg = (
            f"{path} has no decision threshold: {', '.join(unset)} of the post-processor are not finite. Write it "
            "again after a validation, or give the model post_processor=False to get raw scores."
        )
        raise ValueError(msg)
    return stored


def _unset_values(state: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the thresholds if none of them is finite: a single one serves images and pixels."""
    thresholds = {name: value for name, value in state.items() if name.endswith("_threshold")}
    return [] if any(bool(value.isfinite().all()) for value in thresholds.values()) else list(thresholds)
