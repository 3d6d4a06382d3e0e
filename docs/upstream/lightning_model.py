# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch+ as a module that Anomalib could adopt: the default of ``SoftPatchPlus``, by public parts of Anomalib only.

It leaves out everything else that the plugin adds, such as thresholds without labels, reports, and teaching.
``tests/unit/models/test_upstream.py`` trains it in a process that cannot import the plugin.
"""

from collections.abc import Sequence
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models import Patchcore
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel


class SoftPatchPlus(MemoryBankMixin, AnomalibModule):
    """SoftPatch+ with support radii: a memory bank from training images, some of which may be anomalous.

    Args:
        backbone: Name of a timm model.
        layers: Layers whose features are used, the finest grid first.
        coreset_sampling_ratio: Size of the memory bank as a share of the training patches.
        min_images: How many training images must show something for it to be normal: a number, a share of the images,
            or ``"auto"``.
        pre_processor: Pre-processor, or whether to use the default one.
        post_processor: Post-processor, or whether to use the default one.
        evaluator: Evaluator, or whether to use the default one.
        visualizer: Visualizer, or whether to use the default one.
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2",
        layers: Sequence[str] = ("layer2", "layer3"),
        coreset_sampling_ratio: float = 0.01,
        min_images: float | str = "auto",
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        builder = DenoisingMemoryBank(
            discriminators=("knn",),
            thresholds=(0.0,),
            coreset_sampling_ratio=coreset_sampling_ratio,
            soft_weight=False,
            min_images=min_images,
            neighborhood=1,
        )
        self.model = SoftPatchModel(layers, backbone, memory_bank_builder=builder, score_smoothing=1.0)

    @classmethod
    def configure_pre_processor(cls, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return PatchCore's pre-processor."""
        return Patchcore.configure_pre_processor(image_size)

    @staticmethod
    def configure_optimizers() -> None:
        """Return no optimizer, because nothing is learned by gradients."""

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Store the features of a batch, and return the loss of zero that Lightning needs."""
        del args, kwargs
        self.model(batch.image, batch.image_path)
        return torch.tensor(0.0, requires_grad=True, device=self.device)

    def fit(self) -> None:
        """Build the memory bank."""
        self.model.fit()

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Add scores and anomaly maps to a batch."""
        del args, kwargs
        return batch.update(**self.model(batch.image)._asdict())

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments for one pass over the training images on one device."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    @property
    def learning_type(self) -> LearningType:
        """Type of learning: from images that are assumed to be normal."""
        return LearningType.ONE_CLASS
