# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch: PatchCore for training images that contain defects.

Before the memory bank is built, a noise discriminator scores every training patch. The noisiest patches are removed;
those that stay are weighed by their scores.

Paper: https://arxiv.org/abs/2403.14233

See Also:
    :class:`anomalib_softpatch.models.soft_patch.torch_model.SoftPatchModel`: the PyTorch model
"""

from typing import Any

from anomalib.models.components import AnomalibModule

from anomalib_softpatch.models.denoising_mixin import DenoisingMixin


class SoftPatch(DenoisingMixin, AnomalibModule):
    """SoftPatch Lightning module (Jiang et al., NeurIPS 2022).

    With ``threshold=0`` and ``soft_weight=False`` it is PatchCore.

    Args:
        discriminator: How noise is scored: ``"lof"`` (local outlier factor, the paper's best), ``"nearest"``,
            ``"gaussian"`` (Mahalanobis distance); ``"knn"`` (distance to the k-th nearest image) is not of the paper.
        threshold: Share of all training patches that is removed, tau; 0.15 in the paper.
        **options: Options that all models have: of the backbone and the fit, see :class:`DenoisingMixin`; of the
            memory bank, see :class:`DenoisingMemoryBank`.

    Raises:
        ValueError: If an argument is out of range or unknown.
        RuntimeError: If the backbone's weights cannot be had.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_softpatch import SoftPatch
        >>> model = SoftPatch(threshold=0.15)  # doctest: +SKIP
        >>> Engine().fit(model, datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    def __init__(self, discriminator: str = "lof", threshold: float = 0.15, **options: Any) -> None:
        super().__init__(discriminators=(discriminator,), thresholds=(threshold,), **options)
