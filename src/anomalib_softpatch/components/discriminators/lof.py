# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Local outlier factor of every training patch."""

import warnings

import torch

from anomalib_softpatch.components.discriminators.table import discriminator
from anomalib_softpatch.components.references import References, nearest_patches
from anomalib_softpatch.options import CONSTRAINTS, LOF_K

# Reachability distances are at least this share of their mean, so that exact duplicates (constant images, an image
# given twice) have finite densities, and patches that differ by a gray level do not become outliers.
SMALLEST_REACHABILITY = 1e-3


def local_outlier_factor(distances: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Compute the local outlier factor: the density of a patch's neighbors relative to its own, about 1 for inliers.

    Args:
        distances: Distances to the k nearest neighbors in ascending order, shape ``(n, k)``.
        indices: Rows of these neighbors in ``distances``, shape ``(n, k)``.

    Returns:
        Shape ``(n,)``, positive and finite.

    References:
        Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000, definitions 3 to 7.
    """
    k_distance = distances[:, -1]
    reachability = torch.maximum(distances, k_distance[indices]).mean(dim=1)
    smallest = SMALLEST_REACHABILITY * reachability.mean() + torch.finfo(distances.dtype).tiny
    reachability = reachability.clamp_min(smallest)
    # Not the mean of the densities times the reachability: if all are exact duplicates, the sum of densities overflows
    return (reachability[:, None] / reachability[indices]).mean(dim=1)


@discriminator(weight_offset=0.0, lof_k=CONSTRAINTS["lof_k"])
def lof(features: torch.Tensor, references: References, lof_k: int = LOF_K) -> torch.Tensor:
    """Score patches by their local outlier factor among the patches they are compared with (SoftPatch, equation 6).

    Args:
        features: Shape ``(images, height, width, dimensions)``.
        references: Which patches are compared.
        lof_k: Number of neighbors; 6 in the paper. If there are fewer, all are used, with a warning.

    Returns:
        Shape ``(images, height, width)``.
    """
    images, height, width, _ = features.shape
    available = references.available(images, (height, width))
    if lof_k > available:
        warnings.warn(
            f"lof_k={lof_k} exceeds the {available} patches to compare with: using {available}.", stacklevel=2
        )
    return local_outlier_factor(*nearest_patches(features, references, min(lof_k, available))).view(features.shape[:3])
