# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Comparison: the patches of other training pictures that a patch is held against."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Comparison:
    """Say which patches of the training set a patch is compared with.

    The paper compares patches at the same grid position (``neighborhood=0``), which suits aligned objects and textures.
    Objects that lie in any direction have no same position: a neighbourhood or the whole picture gives them more
    patches like themselves to be compared with. Patches of the same picture are never compared with each other in
    distances, since a defect that covers several patches would vouch for itself.

    Args:
        grid_size: Height and width of the grid of patches.
        neighborhood: Compare with the positions up to so many rows and columns away, in a square that is moved inwards
            at the border; ``"image"``: with all positions. Default: the same position only (SoftPatch, section 3.2).
        max_references: Compare with so many patches at most, a random choice that is the same at every position.
            Time grows with pictures x references.
        seed: Seed of that choice.
        block_size: Elements of the largest temporary tensor. Memory grows with it, speed hardly.
    """

    grid_size: tuple[int, int]
    neighborhood: int | Literal["image"] = 0
    max_references: int = 4096
    seed: int = 0
    block_size: int = 2**24

    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return groups of grid positions that share their references.

        Returns:
            Positions whose patches are scored, shape ``(groups, queries)``, and positions they are compared with,
            shape ``(groups, window)``. Every position is in one group's queries.
        """
        height, width = self.grid_size
        everything = torch.arange(height * width)
        if self.neighborhood == "image":
            return everything[None], everything[None]
        rows, columns = _windows(height, self.neighborhood), _windows(width, self.neighborhood)
        window = rows[:, None, :, None] * width + columns[None, :, None, :]
        return everything[:, None], window.reshape(height * width, -1)

    def reference_count(self, pictures: int) -> int:
        """Return how many patches each patch is compared with, those of its own picture included."""
        return min(pictures * self.positions()[1].shape[1], self.max_references)

    def blocks(self, pictures: int, cost: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the comparisons, as many at a time as memory allows.

        Args:
            pictures: Number of training pictures.
            cost: Elements that the caller needs for each scored patch.
            device: Where to put the indices.

        Yields:
            Indices (``picture * patches + position``) of the patches to score, shape ``(groups, queries)``, and of
            those to compare them with, shape ``(groups, references)``.
        """
        patches = self.grid_size[0] * self.grid_size[1]
        queries, window = (positions.to(device) for positions in self.positions())
        offsets = torch.arange(pictures * window.shape[1])
        if len(offsets) > self.max_references:
            generator = torch.Generator().manual_seed(self.seed)
            offsets = torch.randperm(len(offsets), generator=generator)[: self.max_references].sort().values
        offsets = offsets.to(device)
        picture, place = offsets // window.shape[1], offsets % window.shape[1]
        first = torch.arange(pictures, device=device)[:, None] * patches
        groups = max(1, self.block_size // (cost * pictures * queries.shape[1]))
        for query_part, window_part in zip(queries.split(groups), window.split(groups), strict=True):
            scored = (first + query_part[:, None, :]).reshape(len(query_part), -1)
            references = picture * patches + window_part[:, place]
            for part in scored.split(max(1, self.block_size // (cost * len(query_part))), dim=1):
                yield part, references


def _windows(length: int, radius: int) -> torch.Tensor:
    """Return for each position the window of up to ``2 radius + 1`` positions around it, shape ``(length, window)``."""
    size = min(2 * radius + 1, length)
    start = (torch.arange(length) - radius).clamp(0, length - size)
    return start[:, None] + torch.arange(size)


def nearest_patches(features: torch.Tensor, comparison: Comparison, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest patches of other pictures for every patch.

    Args:
        features: Shape ``(pictures, patches, dimensions)``, float32.
        comparison: Which patches are compared.
        k: Number of neighbours.

    Returns:
        Euclidean distances in ascending order and indices (``picture * patches + position``), both of shape
        ``(pictures * patches, k)``.
    """
    pictures, patches, dimensions = features.shape
    flat = features.reshape(-1, dimensions)
    distances = flat.new_empty(len(flat), k)
    indices = torch.empty(len(flat), k, dtype=torch.long, device=flat.device)
    cost = max(comparison.reference_count(pictures), (k + 1) * dimensions)
    for scored, references in comparison.blocks(pictures, cost, flat.device):
        query, reference = flat[scored], flat[references]
        # Expanded squared distances lose digits far from the origin, so each group is centred. They only find the
        # neighbours: the distances themselves are computed from the differences, exact down to zero for duplicates.
        center = reference.mean(dim=1, keepdim=True)
        reference = reference - center
        squares = torch.baddbmm(reference.square().sum(dim=2)[:, None], query - center, reference.mT, alpha=-2)
        squares.masked_fill_((scored // patches)[:, :, None] == (references // patches)[:, None], torch.inf)
        nearest = squares.topk(k, dim=2, largest=False, sorted=False).indices
        nearest = references.gather(1, nearest.flatten(1)).view(nearest.shape)
        distance = torch.linalg.norm(query[:, :, None] - flat[nearest], dim=3)
        distance, order = distance.sort(dim=2, stable=True)
        distances[scored] = distance
        indices[scored] = nearest.gather(2, order)
    return distances, indices
