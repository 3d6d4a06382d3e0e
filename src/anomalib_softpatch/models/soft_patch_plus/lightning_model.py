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

from anomalib.models.components import AnomalibModule

from anomalib_softpatch.models.denoising_mixin import DenoisingMixin

MINIMUM_DISCRIMINATORS = 2


class SoftPatchPlus(DenoisingMixin, AnomalibModule):
    """SoftPatch+ Lightning module (Wang et al., Pattern Recognition 2025).

    Args:
        discriminators: Two or more of ``"lof"``, ``"gaussian"`` and ``"nearest"``; lof and gaussian in the paper.
        classification_threshold: Share of all patches removed from the bank for the image score; 0.15 in the paper.
        segmentation_threshold: Share of all patches removed from the bank for the map; 0.5 in the paper.
        task: ``"both"``, or one task only: then one bank is built, which gives both the image score and the map.
        **options: Options that all models have: of the backbone and the fit, see :class:`DenoisingMixin`; of the
            memory bank, see :class:`DenoisingMemoryBank`.

    Raises:
        ValueError: If an argument is out of range or unknown.
        RuntimeError: If the backbone's weights cannot be had.

    Example:
        >>> from anomalib_softpatch import SoftPatchPlus
        >>> model = SoftPatchPlus(discriminators=("lof", "gaussian"), segmentation_threshold=0.5)
    """

    def __init__(
        self,
        discriminators: Sequence[str] = ("lof", "gaussian"),
        classification_threshold: float = 0.15,
        segmentation_threshold: float = 0.5,
        task: Literal["both", "classification", "segmentation"] = "both",
        **options,  # noqa: ANN003
    ) -> None:
        if len(discriminators) < MINIMUM_DISCRIMINATORS or isinstance(discriminators, str):
            msg = f"discriminators must name two or more, got {discriminators!r}. SoftPatch takes a single one."
            raise ValueError(msg)
        thresholds = {
            "classification": (classification_threshold,),
            "segmentation": (segmentation_threshold,),
            "both": (classification_threshold, segmentation_threshold),
        }
        if task not in thresholds:
            msg = f"Unknown task '{task}': choose from {', '.join(thresholds)}."
            raise ValueError(msg)
        super().__init__(discriminators=discriminators, thresholds=thresholds[task], **options)
