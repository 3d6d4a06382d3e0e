# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distributed fits of a model that has no gradients."""

from functools import partial

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy


def leave_out_gradients(strategy: Strategy) -> None:
    """Have a distributed fit do without ``DistributedDataParallel``, which refuses a model with nothing to train.

    Of what it does, only this is wanted: before the fit, all ranks get the weights of rank 0. To be called in a model's
    ``setup``, before the strategy wraps the model; other strategies than DDP are left as they are.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.configure_ddp = partial(_share_weights, strategy)  # type: ignore[method-assign]


def _share_weights(strategy: DDPStrategy) -> None:
    """Give all ranks the parameters and buffers of rank 0."""
    assert strategy.model is not None
    for tensor in strategy.model.state_dict().values():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            shared = tensor.detach().contiguous()
            torch.distributed.broadcast(shared, src=0)
            tensor.detach().copy_(shared)
