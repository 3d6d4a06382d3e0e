# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Prototypes: rows of a memory bank that stand for the patches around them, not for one image's grain."""

import math

import torch

from anomalib_softpatch.components.feature_store import FeatureStore

# Neighbours that a prototype is the mean of, as a share of the images
SHARE_OF_NEIGHBORS = 0.05
BLOCK = 2**24


def prototypes(store: FeatureStore, projected: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the mean of each patch and its nearest ones in other images at the same position.

    The coreset chooses patches far from each other, hence the extreme ones of what is normal, and of the noise that is
    left. Their means with their neighbours lie among the normal patches. Where the features of different positions do
    not correspond, as with objects in any direction, there are no such neighbours.

    Args:
        store: Features of all patches.
        projected: What neighbours are found by, shape ``(images, height, width, dimensions)``.
        indices: Numbers of the patches, ``image * height * width + row * width + column``, shape ``(m,)``.

    Returns:
        Shape ``(m, channels)``.
    """
    images, height, width, dimensions = projected.shape
    patches = height * width
    count = min(images - 1, math.ceil(SHARE_OF_NEIGHBORS * images))
    if not count:
        return store.rows(indices)
    result = []
    for some in indices.split(max(1, BLOCK // (images * dimensions))):
        position = some % patches
        candidates = projected.flatten(1, 2)[:, position].transpose(0, 1)  # (some, images, dimensions)
        own = candidates.gather(1, (some // patches)[:, None, None].expand(-1, 1, dimensions))
        distances = torch.linalg.vector_norm(candidates - own, dim=2)
        distances.scatter_(1, (some // patches)[:, None], -1.0)  # itself comes first, whatever copies of it there are
        image = distances.topk(count + 1, dim=1, largest=False).indices
        rows = store.rows((image * patches + position[:, None]).flatten())
        result.append(rows.view(len(some), count + 1, -1).mean(dim=1))
    return torch.cat(result)
