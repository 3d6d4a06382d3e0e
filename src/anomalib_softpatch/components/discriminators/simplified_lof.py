# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Simplified local outlier factor, whose neighbours are images: as many as a share of the training set."""

import math
from collections.abc import Iterator

import torch

from anomalib_softpatch.components.references import References, squares_to_others
from anomalib_softpatch.components.smoothing import smooth

# Neighbours, as a share of the other images. What more images show at a position counts as normal; a defect and its
# copies in less than three quarters of them (see below) do not vouch for each other, however many images there are.
SHARE_OF_NEIGHBORS = 0.2
FEWEST_NEIGHBORS = 3
# A patch is held against the denser ones of its neighbours: those of a patch between two normal variants are of both.
QUANTILE_OF_NEIGHBORS = 0.25
# Distances are at least this share of their mean: where all images are equal at a position, as in black corners, a grey
# level makes no outlier.
SMALLEST_DISTANCE = 1e-3


def simplified_lof(features: torch.Tensor, references: References, k: int = 1) -> torch.Tensor:
    """Score patches by how much farther the k-th nearest image is from them than from their neighbours.

    Each image counts once, by its nearest patch. k is a fifth of the other images: with the k = 6 of the papers a
    defect is normal once six other images show it, at any size of the set. The distance to the k-th image is divided by
    the lower quartile of the same distance of those k neighbours, so that a variant that a fifth of the images show is
    judged by its own spread: with the typical image of its position as the measure, all of its border would go. The
    quotients are smoothed over the grid.

    The simplified factor takes distances as they are, where the local outlier factor takes reachabilities (Schubert,
    Zimek and Kriegel, Local outlier detection reconsidered, Data Mining and Knowledge Discovery 2014, section 4.1).

    Args:
        features: Shape ``(images, height, width, dimensions)``.
        references: Which patches are compared.
        k: Not used: every discriminator takes the same arguments.

    Returns:
        Shape ``(images, height, width)``; about 1 for an inlier.
    """
    del k
    images, height, width, dimensions = features.shape
    flat = features.reshape(-1, dimensions)
    distances = flat.new_empty(len(flat))
    for scored, neighbors in _neighbors(features, references):
        # The expanded squares have only found the neighbour: its distance keeps its digits, down to zero for copies.
        distances[scored] = torch.linalg.norm(flat[scored] - flat[neighbors[:, :, -1]], dim=2)
    distances.clamp_(min=float(SMALLEST_DISTANCE * distances.mean()) + torch.finfo(distances.dtype).tiny)
    # Found a second time, rather than kept: they are more than all else together.
    factors = torch.empty_like(distances)
    for scored, neighbors in _neighbors(features, references):
        place = math.ceil(QUANTILE_OF_NEIGHBORS * neighbors.shape[2])
        factors[scored] = distances[scored] / distances[neighbors].kthvalue(place, dim=2).values
    return smooth(factors.view(images, height, width))


def _neighbors(features: torch.Tensor, references: References) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield numbers of patches, shape ``(groups, queries)``, and of those nearest to them in the nearest images.

    The latter have the shape ``(groups, queries, k)``, the nearest image first.
    """
    images, height, width, dimensions = features.shape
    patches = height * width
    cost = max(2 * references.count(images, (height, width)), 2 * dimensions)
    for scored, compared in references.blocks(features, cost):
        # The images of the references are the same for all groups, and in order.
        _, sizes = (compared[0] // patches).unique_consecutive(return_counts=True)
        k = number_of_neighbors(len(sizes))
        squares = squares_to_others(features, scored, compared)
        if len(sizes) == compared.shape[1]:
            nearest = squares.topk(k, dim=2, largest=False).indices
        else:
            values, places = zip(*(part.min(dim=2) for part in squares.split(sizes.tolist(), dim=2)), strict=True)
            starts = sizes.cumsum(dim=0) - sizes
            of_images = torch.stack(values, dim=2).topk(k, dim=2, largest=False).indices
            nearest = (torch.stack(places, dim=2) + starts).gather(2, of_images)
        yield scored, compared.gather(1, nearest.flatten(1)).view(nearest.shape)


def number_of_neighbors(images: int) -> int:
    """Return how many of some images are the neighbours of a patch of one of them.

    Args:
        images: Number of images, the patch's own included.

    Returns:
        A fifth of the other images, at least three as far as there are so many.
    """
    others = max(1, images - 1)
    return min(others, max(FEWEST_NEIGHBORS, math.ceil(SHARE_OF_NEIGHBORS * others)))
