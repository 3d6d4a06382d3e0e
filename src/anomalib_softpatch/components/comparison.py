# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Comparison: the patches of other training images that a patch is held against."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from anomalib_softpatch.components import distributed


@dataclass(frozen=True)
class Comparison:
    """Say which patches of the training set a patch is compared with.

    The paper compares patches at the same grid position (``neighborhood=0``), which suits aligned objects and textures.
    Objects that lie in any direction have no same position: a neighbourhood or the whole image gives them more
    patches like themselves to be compared with. Patches of the same image are never compared with each other in
    distances, since a defect that covers several patches would vouch for itself.

    Args:
        grid_size: Height and width of the grid of patches.
        neighborhood: Compare with the positions up to so many rows and columns away, in a square that is moved inwards
            at the border; ``"image"``: with all positions. Default: the same position only (SoftPatch, section 3.2).
        max_references: Compare with so many patches at most, a random choice that is the same at every position.
            Time grows with images x references.
        seed: Seed of that choice.
        block_size: Elements of the largest temporary tensor. Memory grows with it, speed hardly.
        share: Which part of the positions this rank scores, and of how many. It needs the features of all images at
            those positions and the ones around that they are compared with; with ``"image"``, at all.
    """

    grid_size: tuple[int, int]
    neighborhood: int | Literal["image"] = 0
    max_references: int = 4096
    seed: int = 0
    block_size: int = 2**24
    share: tuple[int, int] = (0, 1)

    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return groups of grid positions that share their references.

        Returns:
            Positions whose patches this rank scores, shape ``(groups, queries)``, and positions they are compared with,
            shape ``(groups, window)``. Every position is in one group's queries of one rank.
        """
        height, width = self.grid_size
        everything = torch.arange(height * width)
        part, parts = self.share
        if self.neighborhood == "image":
            return everything[None].tensor_split(parts, dim=1)[part], everything[None]
        rows, columns = _windows(height, self.neighborhood), _windows(width, self.neighborhood)
        window = rows[:, None, :, None] * width + columns[None, :, None, :]
        window = window.reshape(height * width, -1)
        return everything[:, None].tensor_split(parts)[part], window.tensor_split(parts)[part]

    @cached_property
    def held_positions(self) -> torch.Tensor:
        """Positions whose features this rank needs, ascending."""
        queries, window = self.positions()
        return window.unique() if queries.numel() else queries.new_empty(0)

    def reference_count(self, images: int) -> int:
        """Return how many patches each patch is compared with, those of its own image included."""
        return min(images * self.positions()[1].shape[1], self.max_references)

    def available(self, images: int) -> int:
        """Return how many patches of other images every patch is compared with at least."""
        image, _ = self._references(images)
        return len(image) - int(image.bincount().max())

    def _references(self, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the patches to compare with, the same ones at every position: images and places in the window."""
        window = self.positions()[1].shape[1]
        offsets = torch.arange(images * window)
        if len(offsets) > self.max_references:
            generator = torch.Generator().manual_seed(self.seed)
            offsets = torch.randperm(len(offsets), generator=generator)[: self.max_references].sort().values
        return offsets // window, offsets % window

    def blocks(self, images: int, cost: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the comparisons of this rank's share, as many at a time as memory allows.

        Args:
            images: Number of training images.
            cost: Elements that the caller needs for each scored patch.
            device: Where to put the indices.

        Yields:
            Indices (``image * held positions + place among them``) of the patches to score, shape
            ``(groups, queries)``, and of those to compare them with, shape ``(groups, references)``.
        """
        held = self.held_positions
        if not len(held):
            return
        queries, window = (torch.searchsorted(held, positions).to(device) for positions in self.positions())
        image, place = (each.to(device) for each in self._references(images))
        first = torch.arange(images, device=device)[:, None] * len(held)
        groups = max(1, self.block_size // (cost * images * queries.shape[1]))
        for query_part, window_part in zip(queries.split(groups), window.split(groups), strict=True):
            scored = (first + query_part[:, None, :]).reshape(len(query_part), -1)
            references = image * len(held) + window_part[:, place]
            for part in scored.split(max(1, self.block_size // (cost * len(query_part))), dim=1):
                yield part, references

    def in_grid(self, indices: torch.Tensor) -> torch.Tensor:
        """Turn indices among the held positions into ``image * patches + position``."""
        if self.share[1] == 1:
            return indices
        held, patches = self.held_positions.to(indices.device), self.grid_size[0] * self.grid_size[1]
        return indices // len(held) * patches + held[indices % len(held)]

    def merge(self, results: torch.Tensor) -> torch.Tensor:
        """Fill in what the other ranks computed, where this one has zeros."""
        return results if self.share[1] == 1 else distributed.all_reduce(results)


def _windows(length: int, radius: int) -> torch.Tensor:
    """Return for each position the window of up to ``2 radius + 1`` positions around it, shape ``(length, window)``."""
    size = min(2 * radius + 1, length)
    start = (torch.arange(length) - radius).clamp(0, length - size)
    return start[:, None] + torch.arange(size)


def nearest_patches(features: torch.Tensor, comparison: Comparison, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest patches of other images for every patch.

    Args:
        features: Shape ``(images, held positions, dimensions)``, float32.
        comparison: Which patches are compared.
        k: Number of neighbours.

    Returns:
        Euclidean distances in ascending order and indices (``image * patches + position``), both of shape
        ``(images * patches, k)``.
    """
    images, held, dimensions = features.shape
    flat = features.reshape(-1, dimensions)
    patches = images * comparison.grid_size[0] * comparison.grid_size[1]
    distances = flat.new_zeros(patches, k)
    indices = torch.zeros(patches, k, dtype=torch.long, device=flat.device)
    cost = max(comparison.reference_count(images), (k + 1) * dimensions)
    for scored, references in comparison.blocks(images, cost, flat.device):
        query, reference = flat[scored], flat[references]
        # Expanded squared distances lose digits far from the origin, so each group is centred. They only find the
        # neighbours: the distances themselves are computed from the differences, exact down to zero for duplicates.
        center = reference.mean(dim=1, keepdim=True)
        reference = reference - center
        squares = torch.baddbmm(reference.square().sum(dim=2)[:, None], query - center, reference.mT, alpha=-2)
        squares.masked_fill_((scored // held)[:, :, None] == (references // held)[:, None], torch.inf)
        nearest = squares.topk(k, dim=2, largest=False, sorted=False).indices
        nearest = references.gather(1, nearest.flatten(1)).view(nearest.shape)
        distance = torch.linalg.norm(query[:, :, None] - flat[nearest], dim=3)
        distance, order = distance.sort(dim=2, stable=True)
        distances[comparison.in_grid(scored)] = distance
        indices[comparison.in_grid(scored)] = comparison.in_grid(nearest.gather(2, order))
    return comparison.merge(distances), comparison.merge(indices)
