# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Find out quickly where pre-trained weights can be had: in a folder, on the hub, or in an installed pip package."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from anomalib_softpatch.backbones import LOCAL_DIR, PACKAGES, find_source, is_installed, within
from anomalib_softpatch.text import first_line
from anomalib_softpatch.weights import write_weights

DEFAULT_BACKBONE = "resnet18"
PROBE_SECONDS = 5  # a firewall that swallows packets must not hold the demo up
DOWNLOAD_SECONDS = 180


@dataclass(frozen=True)
class Weights:
    """The backbone that the models get."""

    backbone: str  # name for timm: that of a model, or local-dir:<folder>
    layers: tuple[str, ...]  # whose features are used
    title: str  # for a figure
    untrained: bool  # random weights
    description: str  # what the weights are and why, in words


def find_weights(backbone: str | None, layers: Sequence[str], folder: Path, seed: int) -> Weights:
    """Find pre-trained weights: in a local folder, in the local cache, on the Hugging Face hub, or in a pip package.

    Nothing here waits long for a hub that cannot be reached. Where there is none, the default backbone (``None``) gives
    way to the first of :data:`anomalib_softpatch.backbones.PACKAGES` that is installed; a backbone that was asked for
    by name does not. What is left are untrained weights, from the seed. Either are written to the folder, so that both
    models get the same.
    """
    if backbone is not None and ":" in backbone:
        place = next((file.parent.name for file in find_source(backbone).files), backbone)
        return Weights(backbone, tuple(layers), place, False, f"the weights of {backbone}")

    name = backbone or DEFAULT_BACKBONE
    try:
        source = _fetch(name)
    except Exception as error:  # whatever keeps the weights away, the demo goes on without them
        no_hub = f"those of {name} cannot be fetched: {first_line(error)}"
    else:
        return Weights(name, tuple(layers), name, False, f"{name} with pre-trained weights, {source}")

    packaged = next((known for known in PACKAGES if is_installed(known)), None)
    if backbone is None and packaged is not None:
        try:
            package = write_weights(packaged, folder / packaged)
        except (OSError, ValueError) as error:
            no_hub += f"; {first_line(error)}"
        else:
            description = f"{packaged} with pre-trained weights from the pip package {package.package} ({no_hub})"
            return Weights(f"{LOCAL_DIR}{folder / packaged}", package.layers, packaged, False, description)

    untrained = folder / f"untrained_{name}"
    _save_untrained(name, untrained, seed)
    description = f"{name} with UNTRAINED weights ({no_hub})"
    return Weights(f"{LOCAL_DIR}{untrained}", tuple(layers), f"untrained {name}", True, description)


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
    within(PROBE_SECONDS, huggingface_hub.get_hf_file_metadata, url, timeout=PROBE_SECONDS)
    within(DOWNLOAD_SECONDS, huggingface_hub.hf_hub_download, repository, filename)
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
