# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distance of every training patch to its nearest neighbor."""

import torch

from anomalib_softpatch.components.discriminators.table import discriminator
from anomalib_softpatch.components.references import References, nearest_patches


@discriminator(weight_offset=1.0)
def nearest(features: torch.Tensor, references: References) -> torch.Tensor:
    """Score patches by the distance to the nearest patch they are compared with (SoftPatch, section 3.2).

    For arguments and shapes see :class:`~anomalib_softpatch.components.discriminators.table.Discriminator`.
    """
    return nearest_patches(features, references, k=1)[0].view(features.shape[:3])
