# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Find out quickly whether the pre-trained weights of a backbone can be had, and fetch them where they can."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import timm
import torch
from timm.models import save_for_hf
from torch import nn

LOCAL_DIR = "local-dir:"
PROBE_SECONDS = 5  # a firewall that swallows packets must not hold the demo up
DOWNLOAD_SECONDS = 180


@dataclass(frozen=True)
class Weights:
    """The backbone that the models get.

    Attributes:
        backbone: Name for timm: that of a model, or ``local-dir:<folder>``.
        title: Short name for a figure.
        untrained: Whether its weights are random.
        description: What the weights are and why, in words.
    """

    backbone: str
    title: str
    untrained: bool
    description: str


def find_weights(backbone: str, untrained: Path, seed: int) -> Weights:
    """Find the pre-trained weights of a timm model: in a local folder, in the local cache, or on the Hugging Face hub.

    Weights found on the hub are downloaded into the local cache. Nothing here waits long for a hub that cannot be
    reached. Where pre-trained weights cannot be had, untrained ones are written to a folder, so that both models of
    the comparison get the same ones.

    Args:
        backbone: Name of a timm model, or ``local-dir:<folder>``.
        untrained: Folder for untrained weights, made if they are needed.
        seed: Seed of the untrained weights.

    Returns:
        Pre-trained weights where they can be had, else untrained ones.
    """
    if backbone.startswith(LOCAL_DIR):
        folder = Path(backbone.removeprefix(LOCAL_DIR))
        return Weights(backbone, folder.name, False, f"weights from the folder {folder}")

    try:
        source = _fetch(backbone)
    except Exception as error:  # whatever keeps the weights away, the demo goes on without them
        _save_untrained(backbone, untrained, seed)
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        description = f"UNTRAINED weights, as pre-trained ones cannot be fetched ({reason})"
        return Weights(f"{LOCAL_DIR}{untrained}", f"untrained {backbone}", True, description)
    return Weights(backbone, backbone, False, f"pre-trained weights, {source}")


def _fetch(backbone: str) -> str:
    """Bring the pre-trained weights of a timm model into the local cache, and say where they came from."""
    config = timm.get_pretrained_cfg(backbone)
    if config is None or config.hf_hub_id is None:
        msg = f"timm knows none of {backbone} on the Hugging Face hub"
        raise LookupError(msg)
    repository = config.hf_hub_id
    filename = config.hf_hub_filename or "model.safetensors"
    if isinstance(huggingface_hub.try_to_load_from_cache(repository, filename), str):
        return f"{repository} from the local cache"
    url = huggingface_hub.hf_hub_url(repository, filename)
    _within(PROBE_SECONDS, huggingface_hub.get_hf_file_metadata, url, timeout=PROBE_SECONDS)
    _within(DOWNLOAD_SECONDS, huggingface_hub.hf_hub_download, repository, filename)
    return f"{repository} from the Hugging Face hub"


def _save_untrained(backbone: str, folder: Path, seed: int) -> None:
    """Write a timm model as it is before any training to a folder that timm can read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(backbone, pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts with zeros at the end of residual blocks, which silences them
    save_for_hf(model, str(folder), safe_serialization=True)


def _within(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call a function, and give up waiting for it after some seconds."""
    outcome: list[Exception | None] = []

    def call() -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # raised again in the caller's thread
            outcome.append(error)
        else:
            outcome.append(None)

    # A daemon thread: resolving a host name cannot be interrupted, and must not keep Python from ending either.
    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        msg = f"no answer within {seconds} s"
        raise TimeoutError(msg)
    if outcome[0] is not None:
        raise outcome[0]
