# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch: PatchCore for training images that contain defects.

Before the memory bank is built, a noise discriminator scores every training patch. The noisiest patches are removed;
those that stay are weighed by their scores.

Paper: https://arxiv.org/abs/2403.14233

See Also:
    :class:`anomalib_softpatch.models.soft_patch.torch_model.SoftPatchModel`: the PyTorch model
"""

from collections.abc import Sequence
from typing import Literal

from anomalib import PrecisionType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.models.denoising_mixin import DenoisingMixin


class SoftPatch(DenoisingMixin, AnomalibModule):
    """SoftPatch Lightning module (Jiang et al., NeurIPS 2022).

    With ``threshold=0`` and ``soft_weight=False`` it is PatchCore.

    Args:
        backbone: Name of a timm model, ``local-dir:<folder>`` for weights on disk, or a module.
        layers: Names of the layers to extract features from, the finest grid first.
        pre_trained: Use pre-trained backbone weights.
        coreset_sampling_ratio: Size of the memory bank as a share of all training patches; 0.1 in the paper.
        num_neighbors: Neighbours that re-weight the image score as in PatchCore; 1, as in the paper, for none.
        discriminator: How noise is scored: ``"lof"`` (local outlier factor, the paper's best), ``"nearest"`` or
            ``"gaussian"``.
        lof_k: Neighbours of the local outlier factor; k = 6 in the paper (the official code always uses 5).
        threshold: Share of all training patches that is removed, tau; 0.15 in the paper.
        soft_weight: Weigh the patches of the memory bank by their noise scores.
        precision: ``"float32"``, ``"float16"`` or ``"bfloat16"`` for the backbone. Distances are always float32.
        patch_embedding: ``"average"``: each 3 x 3 neighbourhood is averaged, as in Anomalib's PatchCore.
            ``"unfold"``: it is kept and pooled to 1,024 values, as in the paper.
        neighborhood: Compare patches with those of other images at the same grid position (0, as in the paper), up to
            so many positions away, or of the whole ``"image"``.
        max_references: Compare each patch with so many patches at most, chosen at random. Time grows with it.
        memory_budget: GiB of features to hold in memory while training; more go to a temporary folder on disk.
        noise_report: Write a report of suspicious training images, ``noise_report/``, into the results folder.
        pre_processor: Pre-processor, or whether to use the default one.
        post_processor: Post-processor, or whether to use the default one.
        evaluator: Evaluator, or whether to use the default one.
        visualizer: Visualizer, or whether to use the default one.

    Raises:
        ValueError: If an argument is out of range or unknown.
        RuntimeError: If the backbone's weights cannot be had.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_softpatch import SoftPatch
        >>> model = SoftPatch(threshold=0.15)
        >>> Engine().fit(model, datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2",
        layers: Sequence[str] = ("layer2", "layer3"),
        pre_trained: bool = True,
        coreset_sampling_ratio: float = 0.1,
        num_neighbors: int = 1,
        discriminator: str = "lof",
        lof_k: int = 6,
        threshold: float = 0.15,
        soft_weight: bool = True,
        precision: str | PrecisionType = "float32",
        patch_embedding: Literal["average", "unfold"] = "average",
        neighborhood: int | Literal["image"] = 0,
        max_references: int = 4096,
        memory_budget: float | None = None,
        noise_report: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        builder = DenoisingMemoryBank(
            discriminators=(discriminator,),
            thresholds=(threshold,),
            coreset_sampling_ratio=coreset_sampling_ratio,
            soft_weight=soft_weight,
            lof_k=lof_k,
            neighborhood=neighborhood,
            max_references=max_references,
        )
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self._create_model(
            builder,
            backbone=backbone,
            layers=layers,
            pre_trained=pre_trained,
            num_neighbors=num_neighbors,
            precision=precision,
            patch_embedding=patch_embedding,
            memory_budget=memory_budget,
            noise_report=noise_report,
        )
