# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distributed fits of a model that has no gradients."""

from functools import partial

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy


class DistributedFit(Callback):
    """Let Lightning's ``ddp`` strategy run a model with nothing to train, which ``DistributedDataParallel`` refuses.

    All that is left of its work is that all ranks get the weights of rank 0 before the fit. It acts in ``setup``,
    before the strategy wraps the model.
    """

    def setup(self, trainer: Trainer, pl_module: torch.nn.Module, stage: str) -> None:
        """Keep the strategy from wrapping the model; other strategies than DDP stay as they are."""
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.configure_ddp = partial(_share_weights, trainer.strategy)  # type: ignore[method-assign]


def _share_weights(strategy: DDPStrategy) -> None:
    """Give all ranks the parameters and buffers of rank 0."""
    assert strategy.model is not None
    for tensor in strategy.model.state_dict().values():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            shared = tensor.detach().contiguous()
            torch.distributed.broadcast(shared, src=0)
            tensor.detach().copy_(shared)
