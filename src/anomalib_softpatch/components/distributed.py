# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distributed fits: what the ranks exchange.

Every function is to be called by all ranks in the same order. Where ``torch.distributed`` is not initialized, or has
one process only, each gives back what it was given, so that callers need no second code path.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed


def world_size() -> int:
    """Return the number of ranks."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return this process' number among the ranks."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_gather_object(value: Any) -> list[Any]:
    """Return the small objects of all ranks, which are pickled on the way."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def all_gather(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the tensors of all ranks, one after the other. Ranks may differ in length, the tensors of one may not."""
    if world_size() == 1:
        return tensors
    length = torch.tensor([len(tensors[0])], device=tensors[0].device)
    lengths = [torch.empty_like(length) for _ in range(world_size())]
    distributed.all_gather(lengths, length)
    longest = int(max(lengths))
    gathered = []
    for tensor in tensors:
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        if longest:
            distributed.all_gather(parts, padded)
        gathered.append(torch.cat([part[: int(each)] for part, each in zip(parts, lengths, strict=True)]))
    return gathered


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its sum over all ranks, in place, and return it."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def largest(*values: float, device: torch.device) -> Sequence[float]:
    """Return the maximum of each number over all ranks; the device is the one that the ranks communicate by."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.tolist()


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by rank 0's, in place, and return it."""
    if world_size() > 1:
        distributed.broadcast(tensor, src=0)
    return tensor


def gather(tensor: torch.Tensor, lengths: Sequence[int], destination: int) -> Iterator[torch.Tensor]:
    """Send a tensor of every rank to one of them, which holds one at a time.

    Args:
        tensor: What this rank has, shape ``(lengths[rank], ...)``.
        lengths: Lengths of the ranks' tensors, which agree in all else.
        destination: Rank that receives.

    Yields:
        On the destination, the tensors of all ranks in their order; nothing elsewhere.
    """
    for source, length in enumerate(lengths):
        if source == destination == rank():
            yield tensor
        elif rank() == destination:
            received = tensor.new_empty(length, *tensor.shape[1:])
            if received.numel():
                distributed.recv(received, source)
            yield received
        elif rank() == source and tensor.numel():
            distributed.send(tensor.contiguous(), destination)
