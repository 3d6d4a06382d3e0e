# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What callbacks and helpers may ask of a Lightning module of SoftPatch or SoftPatch+."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer
    from torch import nn

    from anomalib_softpatch.components.self_check import SelfCheck
    from anomalib_softpatch.images.appearance import Appearance
    from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel


class SoftPatchModule(Protocol):
    """A Lightning module around a :class:`SoftPatchModel`, see :class:`DenoisingMixin`.

    Attributes:
        model: The PyTorch model.
        pre_processor: Its pre-processor.
        post_processor: Its post-processor.
        skip_unreadable: Whether a fit leaves out images that cannot be read.
        skipped: Images that were left out of the fit, and why.
        largest_value: White of the images that it was trained on.
        appearances: How the training images of a fit look, by their paths; ``None`` outside of one.
    """

    model: SoftPatchModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    skip_unreadable: bool
    skipped: list[tuple[str, str]]
    largest_value: int
    appearances: dict[str, Appearance] | None

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width of images behind the pre-processor; ``None`` where they depend on the images."""

    @property
    def trainer(self) -> Trainer:
        """The trainer that it is attached to."""

    def ensure_fitted(self) -> None:
        """Build the memory bank, unless that is done."""

    def mark_fitted(self, fitted: bool) -> None:
        """Say whether there is a memory bank, or one is to be built."""

    def self_check(self) -> SelfCheck | None:
        """Judge how far the last fit can be trusted."""

    def log(self, name: str, value: float, *, rank_zero_only: bool = False) -> None:
        """Log a number, see Lightning."""
