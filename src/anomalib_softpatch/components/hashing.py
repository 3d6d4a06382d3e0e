# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of tensors and modules, by which equal ones are recognized in other processes."""

import hashlib

import torch


def describe(tensor: torch.Tensor) -> str:
    """Return the type and shape of a tensor as text."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the values of a tensor as bytes, row by row."""
    # Reshaped first, because a scalar cannot be viewed as bytes
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def hash_module(module: torch.nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {describe(tensor)}\n".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()
