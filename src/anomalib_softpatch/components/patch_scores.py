# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Patch scores: how likely each training patch is to be noise, by one or more discriminators."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.stats import rankdata

from anomalib_softpatch.components.discriminators import DISCRIMINATORS
from anomalib_softpatch.components.discriminators.table import check_discriminators
from anomalib_softpatch.components.feature_store import check_features
from anomalib_softpatch.components.references import References
from anomalib_softpatch.options import LOF_K, MAX_REFERENCES

logger = logging.getLogger(__name__)

# Both papers project features to 128 dimensions before they compare them (SoftPatch, section 3.2).
PROJECTED_DIMENSIONS = 128


@dataclass(frozen=True)
class PatchScores:
    """Noise scores of all training patches.

    Attributes:
        fused: Scores that decide which patches are removed: those of a single discriminator as they are, or the fused
            ranks of several, shape ``(images, height, width)``.
        by_discriminator: Scores of each discriminator by its name, of the same shape.
    """

    fused: torch.Tensor
    by_discriminator: dict[str, torch.Tensor]


def projection_matrix(channels: int, device: torch.device, seed: int = 0) -> torch.Tensor | None:
    """Return a random Gaussian projection to 128 dimensions that keeps distances on average.

    Args:
        channels: Dimensions of the features.
        device: Device of the matrix.
        seed: Seed of a separate generator, so that the global one is in the same state as with PatchCore.

    Returns:
        Shape ``(channels, 128)``; ``None`` if the features have no more than 128 dimensions.
    """
    if channels <= PROJECTED_DIMENSIONS:
        return None
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(channels, PROJECTED_DIMENSIONS, generator=generator)
    return (matrix / PROJECTED_DIMENSIONS**0.5).to(device)


def score_patches(
    features: torch.Tensor,
    discriminators: Sequence[str] = ("lof",),
    *,
    lof_k: int = LOF_K,
    knn_k: int = 2,
    neighborhood: int | Literal["image"] = 0,
    max_references: int = MAX_REFERENCES,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> PatchScores:
    """Score every patch by each discriminator, and fuse the scores (SoftPatch, section 3.2; SoftPatch+).

    Args:
        features: Shape ``(images, height, width, channels)``, float32. If they have more than 128 dimensions, they are
            projected, see :func:`projection_matrix`. To save memory, project them beforehand.
        discriminators: One or more names of ``DISCRIMINATORS``.
        lof_k: Neighbors of the local outlier factor.
        knn_k: k of ``knn``, the distance to the k-th nearest other image.
        neighborhood: See :class:`References`.
        max_references: See :class:`References`.
        seed: Seed of the projection and of the choice of references.
        options: Other parameters of the discriminators by name.
        progress: Show progress bars.

    Raises:
        ValueError: If features have another shape, if a name or an option is unknown, if there are too few images or
            references to compare, or if scores are not finite.

    Example:
        >>> score_patches(torch.randn(20, 16, 16, 64), ("lof", "gaussian")).fused.shape
        torch.Size([20, 16, 16])
    """
    check_features(features)
    check_discriminators(discriminators, options)
    images, height, width, channels = features.shape
    references = References(neighborhood, max_references, seed, progress=progress)
    if images < 2:  # noqa: PLR2004
        msg = (
            f"Noise is found by comparing patches of different images ({', '.join(discriminators)}): that takes at "
            f"least 2 training images, got {images}. With min_images=1, threshold=0, soft_weight=False one is enough."
        )
        raise ValueError(msg)
    if references.available(images, (height, width)) < 1:
        msg = f"With max_references={max_references}, some patches have nothing to be compared with: use more."
        raise ValueError(msg)
    matrix = projection_matrix(channels, features.device, seed)
    projected = features if matrix is None else features @ matrix
    given = {"lof_k": lof_k, "knn_k": knn_k, **(options or {})}
    scores = {}
    for name in discriminators:
        logger.info("Scoring %d patches: %s", features[..., 0].numel(), name)
        own = {key: given[key] for key in DISCRIMINATORS[name].parameters if key in given}
        scores[name] = DISCRIMINATORS[name].score(projected, references, **own)
        if not scores[name].isfinite().all():
            msg = f"The discriminator '{name}' gave NaN or infinite scores: check the training images and precision."
            raise ValueError(msg)
    return PatchScores(next(iter(scores.values())) if len(scores) == 1 else fuse(list(scores.values())), scores)


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Return the rank of every score among all, 0 for the lowest and 1 for the highest; ties share their mean rank.

    Args:
        scores: Any shape. The ranks have the same shape and device, in float32.
    """
    mean_rank = rankdata(scores.detach().cpu().numpy(), axis=None) - 1
    scaled = torch.from_numpy(mean_rank / max(1, scores.numel() - 1))
    return scaled.view(scores.shape).to(scores.device, torch.float32)


def fuse(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """Fuse the scores of several discriminators, all of one shape, as the mean of their ranks, 0 to 1 (SoftPatch+)."""
    return torch.stack([ranks(score) for score in scores]).mean(dim=0)
