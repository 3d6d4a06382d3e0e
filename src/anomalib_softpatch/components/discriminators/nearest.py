# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distance of every training patch to its nearest neighbour."""

import torch

from anomalib_softpatch.components.comparison import Comparison, nearest_patches


def nearest(features: torch.Tensor, comparison: Comparison, k: int = 1) -> torch.Tensor:
    """Score patches by the distance to the nearest patch they are compared with (SoftPatch, section 3.2).

    Args:
        features: Shape ``(images, held positions, dimensions)``.
        comparison: Which patches are compared.
        k: Not used: every discriminator takes the same arguments.

    Returns:
        Shape ``(images, patches)``.
    """
    del k
    return nearest_patches(features, comparison, k=1)[0].view(len(features), -1)
