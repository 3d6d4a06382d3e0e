# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Image scores: one noise score per image, from the scores of its patches."""

import torch

from anomalib_softpatch.components import ranks

TOP_SHARE = 0.01


def image_scores(scores: torch.Tensor, share: float = TOP_SHARE) -> torch.Tensor:
    """Return the mean of each image's highest patch scores.

    One percent, 10 patches of a grid of 32 x 32, is about the size of a small defect. A larger share dilutes it: with
    the distance to the second nearest other image as the noise score (MobileNetV2, ``benchmarks/image_score.py``), 3 %
    rank the injected images of magnetic tiles and macaroni worse by 2 to 4 points of AUROC, and those of KolektorSDD
    better by 1.

    Args:
        scores: Noise scores of all patches, shape ``(images, height, width)``.
        share: Share of an image's patches to take the mean of, at least one patch.

    Returns:
        Shape ``(images,)``, in the units of the patch scores.
    """
    flat = scores.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    return flat.topk(count, dim=1).values.mean(dim=1)


def rarity(scores: torch.Tensor) -> torch.Tensor:
    """Return the negative decimal logarithm of the share of all patches that score at least as high as each patch.

    Each discriminator has its own scale, some with a long tail. The share is comparable between them, and its logarithm
    separates one patch in a thousand (3) from one in ten (1).
    """
    return -(1 - ranks(scores)).clamp_min(1 / scores.numel()).log10()


def peaks(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return score, row and column of the highest-scored patch of each image, each of shape ``(images,)``.

    Args:
        scores: Noise scores of all patches, shape ``(images, height, width)``.
    """
    values, positions = scores.flatten(1).max(dim=1)
    return values, positions // scores.shape[2], positions % scores.shape[2]
