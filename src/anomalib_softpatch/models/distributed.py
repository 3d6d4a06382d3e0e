# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Fits on several devices: every rank extracts the features of its images, rank 0 builds the memory bank of all.

The algorithms run in one process. Rank 0 gathers the features of all ranks, on disk beyond ``memory_budget``. It scores
and selects as on a single device, and sends the memory bank to all. So the result is the same as on one device.
Extraction, most of a fit, is shared. During the rest, the other ranks wait.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from anomalib_softpatch.components import FeatureStore, MemoryBank
from anomalib_softpatch.components.out_of_bag import OutOfBagScores
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel

# The default of 10 to 30 minutes is too short for ranks that wait for the coreset of a large set.
TIMEOUT = timedelta(days=2)


def fit_on_first_rank(model: SoftPatchModel, fit: Callable[[], None]) -> None:
    """Build the memory bank on rank 0 from the features of all ranks, and give it to all. All ranks must call this.

    Only rank 0 keeps the other findings of the fit (``model.denoising``).

    Args:
        model: Model whose feature store holds the features of this rank's images.
        fit: Builds the memory bank from the model's feature store.

    Raises:
        RuntimeError: On the other ranks, if it fails on rank 0, which raises the error itself.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        fit()
        return
    group = distributed.new_group(backend="gloo", timeout=TIMEOUT)  # sends tensors on the CPU, whatever the device
    assert isinstance(group, distributed.ProcessGroup)  # all ranks are members
    try:
        error: Exception | None = None
        try:
            gather_features(model.feature_store, group)
            if distributed.get_rank() == 0:
                fit()
        except Exception as caught:
            error = caught
        finally:
            model.feature_store.clear()
        message = [None if error is None else f"{type(error).__name__}: {error}"]
        distributed.broadcast_object_list(message, src=0, group=group)
        if error is not None:
            raise error
        if message[0] is not None:
            msg = f"The fit failed on rank 0: {message[0]}"
            raise RuntimeError(msg)
        _broadcast_memory_bank(model, group)
    finally:
        distributed.destroy_process_group(group)


def gather_features(store: FeatureStore, group: distributed.ProcessGroup) -> None:
    """Append the features of all ranks to the store of rank 0, rank by rank. All ranks must call this.

    An image whose key several ranks have counts once: the sampler repeats images to give all ranks the same number.

    Args:
        store: Features of this rank's images.
        group: Process group that sends tensors on the CPU.

    Raises:
        ValueError: On rank 0, if the ranks have features of different sizes.
    """
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    if rank > 0:
        batches = [(features, keys) for features, keys in store.batches() if len(features)]
        distributed.send_object_list([[(features.shape, features.dtype, keys) for features, keys in batches]], 0, group)
        for features, _ in batches:
            distributed.send(features.cpu().contiguous(), 0, group)
        return
    error: Exception | None = None
    known = set(store.keys)
    for source in range(1, ranks):
        received: list[Any] = [None]
        distributed.recv_object_list(received, source, group)
        new: set[str] = set()
        for shape, dtype, keys in received[0]:
            features = torch.empty(shape, dtype=dtype)
            distributed.recv(features, source, group)
            if error is not None:  # the other ranks must still be able to send
                continue
            if keys is not None:
                wanted = [place for place, key in enumerate(keys) if key not in known]
                features, keys = features[wanted], [keys[place] for place in wanted]  # noqa: PLW2901
                new.update(keys)
            try:
                if len(features):
                    store.append(features.to(store.device), keys)
            except (ValueError, OSError) as caught:
                error = caught
        known |= new
    if error is not None:
        raise error


def _broadcast_memory_bank(model: SoftPatchModel, group: distributed.ProcessGroup) -> None:
    first = distributed.get_rank() == 0
    tensors = []
    if first and model.out_of_bag is not None:
        bank = [model.memory_bank, model.weights, model.radii]
        tensors = [*bank, model.out_of_bag.image_scores, model.out_of_bag.map_peaks]
    header = [([tensor.shape for tensor in tensors], model.bank_ranges)]
    distributed.broadcast_object_list(header, src=0, group=group)
    shapes, bank_ranges = header[0]
    tensors = [tensor.cpu().contiguous() for tensor in tensors] if first else [torch.empty(shape) for shape in shapes]
    for tensor in tensors:
        if tensor.numel():
            distributed.broadcast(tensor, src=0, group=group)
    if not first:
        device = model.memory_bank.device
        features, weights, radii, image_scores, map_peaks = (tensor.to(device) for tensor in tensors)
        model.set_memory_bank(MemoryBank(features, weights, radii, bank_ranges))
        model.out_of_bag = OutOfBagScores(image_scores, map_peaks)
