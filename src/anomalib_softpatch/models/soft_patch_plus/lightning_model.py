# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch+: a memory bank for training images of which up to 40 % are anomalous.

By default nothing is removed: the patches of the memory bank have support radii, which say how many images must show
something for it to be normal. The paper's way is one configuration away: several discriminators, whose scores are fused
by rank, and a memory bank for each task.

Paper: https://arxiv.org/abs/2412.20870. The authors have not released an implementation.

See Also:
    :class:`anomalib_softpatch.models.soft_patch.torch_model.SoftPatchModel`: the PyTorch model, SoftPatch's
"""

from collections.abc import Sequence
from typing import Any, Literal

from anomalib.models.components import AnomalibModule

from anomalib_softpatch.models.denoising_mixin import DenoisingMixin


class SoftPatchPlus(DenoisingMixin, AnomalibModule):
    """SoftPatch+ Lightning module (Wang et al., Pattern Recognition 2025), made for unlabeled training images.

    The default is not the paper's: support radii take the place of removal and weights, see
    :mod:`anomalib_softpatch.components.support_radii`. The paper's own choices are
    ``discriminators=("lof", "gaussian")``, ``min_images=1``, ``classification_threshold=0.15``,
    ``segmentation_threshold=0.5``, ``soft_weight=True``, ``neighborhood=0`` and ``score_smoothing=0``:
    ``configs/model/soft_patch_plus_paper.yaml`` has them.

    Args:
        discriminators: One or more of ``"knn"``, ``"lof"``, ``"gaussian"`` and ``"nearest"``; the ranks of several are
            averaged. They rank the training images in the noise report, and decide which patches are removed where
            any are. lof and gaussian in the paper.
        min_images: Normal is what at least so many training images show: a number, a share of the images, or
            ``"auto"`` (2: an image and another one; 3 where one of them looks like a copy). Copies of an image count as
            one. 1, as in the paper: whatever one image shows is normal unless it is removed.
        classification_threshold: Share of all patches removed from the bank for the image score; 0.15 in the paper.
        segmentation_threshold: Share of all patches removed from the bank for the map; 0.5 in the paper.
        task: ``"both"``, or one task only: then one bank is built, which gives both the image score and the map.
        soft_weight: Weigh the patches of the memory banks. The paper's public texts do not say how. ``False``: not at
            all. ``True`` or ``"rank"``: 1 + r of the fused rank r. ``"lof"``: the local outlier factor.
        neighborhood: How many rows and columns away from a patch others may be for it to be compared with them;
            ``"image"``: anywhere. 0 in the paper.
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
        discriminators: Sequence[str] = ("knn",),
        min_images: float | Literal["auto"] = "auto",
        classification_threshold: float = 0.0,
        segmentation_threshold: float = 0.0,
        task: Literal["both", "classification", "segmentation"] = "both",
        soft_weight: bool | Literal["rank", "lof"] = False,
        neighborhood: int | Literal["image"] = 1,
        score_smoothing: float = 1.0,
        **options: Any,
    ) -> None:
        if isinstance(discriminators, str):
            msg = f"discriminators must be a list of names, got {discriminators!r}."
            raise ValueError(msg)  # noqa: TRY004  # bad values of options are all of one kind
        thresholds: dict[str, tuple[float, ...]] = {
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
            min_images=min_images,
            neighborhood=neighborhood,
            score_smoothing=score_smoothing,
            **options,
        )
