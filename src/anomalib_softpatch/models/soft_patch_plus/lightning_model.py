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
from typing import Any, Literal

from anomalib.models.components import AnomalibModule

from anomalib_softpatch.models.denoising_mixin import DenoisingMixin


class SoftPatchPlus(DenoisingMixin, AnomalibModule):
    """SoftPatch+ Lightning module (Wang et al., Pattern Recognition 2025), made to hold up to 40 % of noise.

    A memory bank for the image score and one for the map, as in the paper. By default patches are scored by a
    local outlier factor whose neighbours are a fifth of the images, as many are removed as normal images can bear, and
    those of the banks are averaged with their nearest ones. The paper's own choices are
    ``discriminators=("lof", "gaussian")``, ``classification_threshold=0.15``, ``segmentation_threshold=0.5``,
    ``soft_weight=True``, ``prototypes=False`` and ``score_smoothing=0``: ``configs/model/soft_patch_plus_paper.yaml``
    has them.

    Args:
        discriminators: One or more of ``"simplified_lof"``, ``"ensemble"``, ``"lof"``, ``"gaussian"`` and
            ``"nearest"``; the ranks of several are averaged. lof and gaussian in the paper.
        classification_threshold: Share of all patches removed from the bank for the image score; 0.15 in the paper.
            ``"auto"``: up to 0.35, as much as normal images can bear.
        segmentation_threshold: Share of all patches removed from the bank for the map; 0.5 in the paper. ``"auto"``: up
            to 0.5 (0.35 where it is the only bank), as much as normal images can bear.
        task: ``"both"``, or one task only: then one bank is built, which gives both the image score and the map.
        soft_weight: Weigh the patches of the memory banks. The paper's public texts do not say how. ``False``: not at
            all. ``True`` or ``"rank"``: 1 + r of the fused rank r. ``"lof"``: the local outlier factor.
        prototypes: Average each patch of the memory banks with its nearest ones, at the same position, in 5 % of the
            images. Not in the paper.
        score_smoothing: Standard deviation, in patches, of a Gaussian that smooths the patch scores before the largest
            becomes the image score: what single patches that are rare and normal cost is less then. 0 in the paper.
        **options: Options that all models have: of the backbone and the fit, see :class:`DenoisingMixin`; of the
            memory bank, see :class:`DenoisingMemoryBank`.

    Raises:
        ValueError: If an argument is out of range or unknown.
        RuntimeError: If the backbone's weights cannot be had.

    Example:
        >>> from anomalib_softpatch import SoftPatchPlus
        >>> model = SoftPatchPlus(segmentation_threshold=0.5)  # doctest: +SKIP
    """

    def __init__(
        self,
        discriminators: Sequence[str] = ("simplified_lof",),
        classification_threshold: float | Literal["auto"] = "auto",
        segmentation_threshold: float | Literal["auto"] = "auto",
        task: Literal["both", "classification", "segmentation"] = "both",
        soft_weight: bool | Literal["rank", "lof"] = False,
        prototypes: bool = True,
        score_smoothing: float = 1.0,
        **options: Any,
    ) -> None:
        if isinstance(discriminators, str):
            msg = f"discriminators must be a list of names, got {discriminators!r}."
            raise ValueError(msg)  # noqa: TRY004  # bad values of options are all of one kind
        thresholds: dict[str, tuple[float | Literal["auto"], ...]] = {
            "classification": (classification_threshold,),
            "segmentation": (segmentation_threshold,),
            "both": (classification_threshold, segmentation_threshold),
        }
        if task not in thresholds:
            msg = f"Unknown task '{task}': choose from {', '.join(thresholds)}."
            raise ValueError(msg)
        super().__init__(
            discriminators=discriminators,
            thresholds=thresholds[task],
            soft_weight=soft_weight,
            prototypes=prototypes,
            score_smoothing=score_smoothing,
            **options,
        )
