# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Noise discriminators: each scores every training patch, the higher the more likely it is noise.

A new discriminator is a function with the arguments of those here, in a module of its own, and a line in
``DISCRIMINATORS``.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from anomalib_softpatch.components.comparison import Comparison
from anomalib_softpatch.components.discriminators.gaussian import gaussian
from anomalib_softpatch.components.discriminators.lof import local_outlier_factor, lof
from anomalib_softpatch.components.discriminators.nearest import nearest

__all__ = ["DISCRIMINATORS", "Discriminator", "gaussian", "local_outlier_factor", "lof", "nearest", "noise_scores"]

# Both papers project features to 128 dimensions before they compare them (SoftPatch, section 3.2).
PROJECTED_DIMENSIONS = 128


@dataclass(frozen=True)
class Discriminator:
    """A way to score patches.

    Args:
        score: Function of features, comparison and k that returns scores of shape ``(images, patches)``.
        weight_offset: Added to a score to make it the weight of its patch: 0 where inliers score about 1, else 1.
    """

    score: Callable[[torch.Tensor, Comparison, int], torch.Tensor]
    weight_offset: float


DISCRIMINATORS = {
    "lof": Discriminator(lof, weight_offset=0.0),
    "nearest": Discriminator(nearest, weight_offset=1.0),
    "gaussian": Discriminator(gaussian, weight_offset=1.0),
}


def projection_matrix(channels: int, device: torch.device, seed: int = 0) -> torch.Tensor | None:
    """Return a random Gaussian projection to 128 dimensions that keeps distances on average.

    Args:
        channels: Dimensions of the features.
        device: Where to put the matrix.
        seed: Seed. The generator is the matrix's own, so that the global one stands where PatchCore's would.

    Returns:
        Shape ``(channels, 128)``; ``None`` if there is nothing to reduce.
    """
    if channels <= PROJECTED_DIMENSIONS:
        return None
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(channels, PROJECTED_DIMENSIONS, generator=generator)
    return (matrix / PROJECTED_DIMENSIONS**0.5).to(device)


def noise_scores(features: torch.Tensor, name: str, comparison: Comparison, k: int = 6) -> torch.Tensor:
    """Score every patch with one discriminator.

    Args:
        features: Shape ``(images, held positions, dimensions)``, float32, projected. Held are all positions, unless
            the comparison is a share of several.
        name: One of ``DISCRIMINATORS``.
        comparison: Which patches are compared.
        k: Number of neighbours, for ``"lof"``.

    Returns:
        Shape ``(images, patches)``, on every rank.

    Raises:
        ValueError: If there are too few images or references to compare.
    """
    images = len(features)
    if images < 2:  # noqa: PLR2004
        msg = (
            f"The discriminator '{name}' compares patches of different images: it needs at least 2 training "
            f"images, got {images}. With threshold=0 and soft_weight=False one image is enough."
        )
        raise ValueError(msg)
    available = comparison.available(images)
    if available < 1:
        msg = f"max_references={comparison.max_references} leaves some patches nothing to be compared with: use more."
        raise ValueError(msg)
    if name == "lof" and k > available:
        warnings.warn(f"lof_k={k} exceeds the {available} patches to compare with: using {available}.", stacklevel=2)
        k = available
    scores = DISCRIMINATORS[name].score(features, comparison, k)
    if not scores.isfinite().all():
        msg = f"The discriminator '{name}' gave NaN or infinite scores: check the training images and the precision."
        raise ValueError(msg)
    return scores
