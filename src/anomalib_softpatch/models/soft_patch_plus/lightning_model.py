# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch+: SoftPatch with several discriminators and a memory bank for each task.

The scores of the discriminators are fused by rank, so that they are comparable whatever their scales. An image score
wants to keep rare normal patches and a map wants a very clean bank, so each has a bank of its own.

Paper: https://arxiv.org/abs/2412.20870. The authors have not released an implementation.

See Also:
    :class:`anomalib_softpatch.models.soft_patch.torch_model.SoftPatchModel`: the PyTorch model, SoftPatch's
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

MINIMUM_DISCRIMINATORS = 2


class SoftPatchPlus(DenoisingMixin, AnomalibModule):
    """SoftPatch+ Lightning module (Wang et al., Pattern Recognition 2025).

    Args:
        backbone: Name of a timm model, ``local-dir:<folder>`` for weights on disk, or a module.
        layers: Names of the layers to extract features from, the finest grid first.
        pre_trained: Use pre-trained backbone weights.
        coreset_sampling_ratio: Size of each memory bank as a share of all training patches; 0.1 in the paper.
        num_neighbors: Neighbours that re-weight the image score as in PatchCore; 1 for none.
        discriminators: Two or more of ``"lof"``, ``"gaussian"`` and ``"nearest"``; lof and gaussian in the paper.
        lof_k: Neighbours of the local outlier factor; k = 6 in the paper.
        classification_threshold: Share of all patches removed from the bank for the image score; 0.15 in the paper.
        segmentation_threshold: Share of all patches removed from the bank for the map; 0.5 in the paper.
        task: ``"both"``, or one task only: then one bank is built, which gives both the image score and the map.
        soft_weight: Weight of the patches of the memory banks, which the paper's public texts do not state. ``False``:
            none. ``"rank"``: 1 + r of the fused rank r. ``"lof"``: the local outlier factor, as in SoftPatch.
            ``True`` is ``"rank"``.
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
        >>> from anomalib_softpatch import SoftPatchPlus
        >>> model = SoftPatchPlus(discriminators=("lof", "gaussian"), segmentation_threshold=0.5)
    """

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2",
        layers: Sequence[str] = ("layer2", "layer3"),
        pre_trained: bool = True,
        coreset_sampling_ratio: float = 0.1,
        num_neighbors: int = 1,
        discriminators: Sequence[str] = ("lof", "gaussian"),
        lof_k: int = 6,
        classification_threshold: float = 0.15,
        segmentation_threshold: float = 0.5,
        task: Literal["both", "classification", "segmentation"] = "both",
        soft_weight: bool | Literal["rank", "lof"] = True,
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
        if len(discriminators) < MINIMUM_DISCRIMINATORS or isinstance(discriminators, str):
            msg = f"discriminators must name two or more, got {discriminators!r}. SoftPatch takes a single one."
            raise ValueError(msg)
        thresholds = {"classification": (classification_threshold,), "segmentation": (segmentation_threshold,)}
        thresholds["both"] = (classification_threshold, segmentation_threshold)
        if task not in thresholds:
            msg = f"Unknown task '{task}': choose from {', '.join(thresholds)}."
            raise ValueError(msg)
        builder = DenoisingMemoryBank(
            discriminators=discriminators,
            thresholds=thresholds[task],
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
