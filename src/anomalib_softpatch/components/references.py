# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""References: the patches of other training images that a patch is compared with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from anomalib_softpatch.components.progress import progress_bar
from anomalib_softpatch.options import MAX_REFERENCES


@dataclass(frozen=True)
class References:
    """Choose the patches of the training set that a patch is compared with.

    The paper compares patches at the same grid position (``neighborhood=0``), which suits aligned objects and textures.
    If objects can have any orientation, the same position shows different things. A neighborhood or the whole image
    then offers more similar patches to compare with. Distances between patches of the same image never count, since
    a defect that covers several patches would support itself.

    Patches are numbered ``image * height * width + row * width + column``.

    Args:
        neighborhood: Largest distance in rows and columns of the positions to compare with. Their square is shifted
            inward at the border. ``"image"``: all positions. Default: the same position only (SoftPatch, section 3.2).
        max_references: Largest number of patches to compare with, a random choice that is the same at every position.
            Time grows with images x references.
        seed: Seed of that choice.
        block_size: Elements of the largest temporary tensor. Memory grows with it, but speed hardly does.
        progress: Show a progress bar.
    """

    neighborhood: int | Literal["image"] = 0
    max_references: int = MAX_REFERENCES
    seed: int = 0
    block_size: int = 2**24
    progress: bool = False

    def positions(self, grid_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return groups of grid positions that share their references.

        Args:
            grid_size: Height and width of the grid of patches.

        Returns:
            Positions of the patches to score, shape ``(groups, queries)``, and positions to compare them with, shape
            ``(groups, window)``. Every position is in the queries of one group.
        """
        height, width = grid_size
        everything = torch.arange(height * width)
        if self.neighborhood == "image":
            return everything[None], everything[None]
        rows, columns = _windows(height, self.neighborhood), _windows(width, self.neighborhood)
        window = rows[:, None, :, None] * width + columns[None, :, None, :]
        return everything[:, None], window.reshape(height * width, -1)

    def count(self, images: int, grid_size: tuple[int, int]) -> int:
        """Return the number of patches that each patch is compared with, including those of its own image."""
        return min(images * self.positions(grid_size)[1].shape[1], self.max_references)

    def available(self, images: int, grid_size: tuple[int, int]) -> int:
        """Return the smallest number of patches of other images that a patch is compared with."""
        image, _ = self._choose(images, grid_size)
        return len(image) - int(image.bincount().max())

    def _choose(self, images: int, grid_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the patches to compare with, the same at every position: their images and places in the window."""
        window = self.positions(grid_size)[1].shape[1]
        offsets = torch.arange(images * window)
        if len(offsets) > self.max_references:
            generator = torch.Generator().manual_seed(self.seed)
            offsets = torch.randperm(len(offsets), generator=generator)[: self.max_references].sort().values
        return offsets // window, offsets % window

    def blocks(self, features: torch.Tensor, cost: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield which patches are compared with which, as many at a time as memory allows.

        Args:
            features: Shape ``(images, height, width, dimensions)``; only its shape and device are read.
            cost: Elements that the caller needs for each scored patch.

        Yields:
            Numbers of the patches to score, shape ``(groups, queries)``, and of those to compare them with, shape
            ``(groups, references)``.
        """
        images, height, width, _ = features.shape
        queries, window = (positions.to(features.device) for positions in self.positions((height, width)))
        image, place = (each.to(features.device) for each in self._choose(images, (height, width)))
        first = torch.arange(images, device=features.device)[:, None] * height * width
        groups = max(1, self.block_size // (cost * images * queries.shape[1]))
        with progress_bar(images * height * width, "Comparing patches", "patch", self.progress) as bar:
            for query_part, window_part in zip(queries.split(groups), window.split(groups), strict=True):
                scored = (first + query_part[:, None, :]).reshape(len(query_part), -1)
                references = image * height * width + window_part[:, place]
                for part in scored.split(max(1, self.block_size // (cost * len(query_part))), dim=1):
                    yield part, references
                    bar.update(part.numel())


def _windows(length: int, radius: int) -> torch.Tensor:
    """Return for each position the window of up to ``2 radius + 1`` positions around it, shape ``(length, window)``."""
    size = min(2 * radius + 1, length)
    start = (torch.arange(length) - radius).clamp(0, length - size)
    return start[:, None] + torch.arange(size)


def nearest_patches(features: torch.Tensor, references: References, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest patches of other images for every patch.

    Args:
        features: Shape ``(images, height, width, dimensions)``, float32.
        references: Which patches are compared.
        k: Number of neighbors.

    Returns:
        Euclidean distances in ascending order and numbers of the neighbors, both of shape
        ``(images * height * width, k)``.
    """
    images, height, width, dimensions = features.shape
    flat = features.reshape(-1, dimensions)
    distances = flat.new_empty(len(flat), k)
    indices = torch.empty(len(flat), k, dtype=torch.long, device=flat.device)
    cost = max(references.count(images, (height, width)), (k + 1) * dimensions)
    for scored, compared in references.blocks(features, cost):
        # Expanded squares only find the neighbors. Distances are computed from differences: exact, 0 for duplicates.
        squares = squares_to_others(features, scored, compared)
        nearest = squares.topk(k, dim=2, largest=False, sorted=False).indices
        nearest = compared.gather(1, nearest.flatten(1)).view(nearest.shape)
        distance = torch.linalg.norm(flat[scored][:, :, None] - flat[nearest], dim=3)
        distances[scored], order = distance.sort(dim=2, stable=True)
        indices[scored] = nearest.gather(2, order)
    return distances, indices


def squares_to_others(features: torch.Tensor, scored: torch.Tensor, compared: torch.Tensor) -> torch.Tensor:
    """Return squared distances between patches, without a term that is the same for all references of a patch.

    The term is the squared distance of the patch to the mean of the references.

    Args:
        features: Shape ``(images, height, width, dimensions)``, float32.
        scored: Numbers of patches, shape ``(groups, queries)``.
        compared: Numbers of the patches that they are compared with, shape ``(groups, references)``.

    Returns:
        Shape ``(groups, queries, references)``; infinite between patches of one image.
    """
    _, height, width, dimensions = features.shape
    flat = features.reshape(-1, dimensions)
    query, reference = flat[scored], flat[compared]
    # Expanded squares lose digits far from the origin, so each group is centered.
    center = reference.mean(dim=1, keepdim=True)
    reference = reference - center
    squares = torch.baddbmm(reference.square().sum(dim=2)[:, None], query - center, reference.mT, alpha=-2)
    patches = height * width
    return squares.masked_fill_((scored // patches)[:, :, None] == (compared // patches)[:, None], torch.inf)
