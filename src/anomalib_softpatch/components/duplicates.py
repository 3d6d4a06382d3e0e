# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Duplicates: groups of training images that are one image, copied exactly or nearly.

What several images show counts as normal, so that a defect whose image was copied would support itself. Therefore
copies count as one image.
"""

from collections.abc import Hashable, Sequence

import torch

from anomalib_softpatch.components.references import References

# Which nearest image the distance to a copy is held against. More copies of one image than half of the last are not
# recognized.
RANKS = (8, 16, 32)
# The distance to the k-th nearest image grows with the root of k of the dimension of the family that the images are of.
# Rigid objects that lie anywhere in any direction are a family of three dimensions. A copy is nearer than that allows.
DIMENSION = 3.0
# With fewer images there is too little to tell a copy from a similar image by: exact copies only.
FEWEST_IMAGES = 20
# Patches of an image that are compared, and how far from its own place a patch of a copy may be: on a grid of 32, two
# patches cover a shift of 3 % and, at the edge, a rotation by 3 degrees
MOST_PLACES, FEWEST_PLACES = 64, 9
RADIUS = 2
# Comparisons of two patches, so that thousands of images are compared at fewer places
LARGEST_PRODUCT = 2**28
# Elements of the largest temporary tensor, and images that are compared with all others at a time
BLOCK = 2**24
IMAGES_AT_A_TIME = 512


def duplicate_groups(hashes: Sequence[Hashable], features: torch.Tensor) -> torch.Tensor:
    """Group the images that are copies of each other.

    Exact copies have the same hash. Near copies (saved again as JPEG, rotated by up to 3 degrees, shifted by up to 3 %,
    photographed again in other light) are told by :func:`near_pairs`.

    Args:
        hashes: Hash of the content of each image.
        features: Features of the patches, shape ``(images, height, width, channels)``.

    Returns:
        Number of each image's group, shape ``(images,)``: 0, 1, ... in the order of the groups' first images.
    """
    exact = _number(hashes)
    first = representatives(exact)
    pairs = near_pairs(features[first.to(features.device)])
    return _number(_join(len(first), pairs.tolist())[exact].tolist())


def representatives(groups: torch.Tensor) -> torch.Tensor:
    """Return the first image of each group.

    Args:
        groups: Number of each image's group as :func:`duplicate_groups` returns it, shape ``(images,)``.

    Returns:
        Indices of images, ascending, shape ``(groups,)``: ``scores_of_representatives[groups]`` gives every image the
        scores of its group.
    """
    groups = groups.cpu()
    first = torch.full((int(groups.max()) + 1,), len(groups), dtype=torch.long)
    return first.scatter_reduce(0, groups, torch.arange(len(groups)), reduce="amin")


def near_pairs(features: torch.Tensor) -> torch.Tensor:
    """Find pairs of images that are nearer to each other than different images are.

    Most patches of each have the other image nearer than the k-th nearest image by the factor ``(k / 4)^(-1/3)``, for a
    k of 8, 16 or 32. The distance to an image is that to its nearest patch at about the same place. Two images that are
    like each other and unlike all others count as copies, too: nothing tells the two cases apart. Sets of fewer than 20
    images are not searched.

    Args:
        features: Features of the patches, shape ``(images, height, width, channels)``.

    Returns:
        Indices of the images, each pair once, shape ``(pairs, 2)``.
    """
    images, height, width, channels = features.shape
    if images < FEWEST_IMAGES:
        return torch.empty(0, 2, dtype=torch.long)
    ranks = [k for k in RANKS if k < images / 2]
    window = References(RADIUS).positions((height, width))[1].to(features.device)
    flat = features.flatten(1, 2)
    places = _places(height, width, LARGEST_PRODUCT // images**2)
    counts = torch.zeros(len(ranks), images, images, dtype=torch.uint8, device=features.device)
    for place in places:
        # Expanded squares lose digits far from the origin
        others = (flat[:, window[place]] - flat[:, place].mean(dim=0)).float().reshape(-1, channels)
        queries = (flat[:, place] - flat[:, place].mean(dim=0)).float()
        norms = others.square().sum(dim=1)
        size = max(1, min(IMAGES_AT_A_TIME, BLOCK // len(others)))
        for start in range(0, images, size):
            part = queries[start : start + size]
            squares = torch.addmm(norms, part, others.T, alpha=-2).view(len(part), images, -1).amin(dim=2)
            squares = (squares + part.square().sum(dim=1, keepdim=True)).clamp_min_(0)
            squares[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
            nearest = squares.topk(ranks[-1], dim=1, largest=False).values
            for count, k in zip(counts, ranks, strict=True):
                limit = (k / 4) ** (-2 / DIMENSION) * nearest[:, k - 1 : k]
                count[start : start + size] += squares < limit
    most = (counts > len(places) // 2).any(dim=0)
    return (most & most.T).triu(diagonal=1).nonzero().cpu()


def _places(height: int, width: int, most: int) -> list[int]:
    """Return numbers of positions, evenly spread over the grid, without its border.

    What a rotation or a shift brings in at the border, be it black, makes different images alike.

    Args:
        height: Height of the grid.
        width: Width of the grid.
        most: How many there may be; a few more where that is very little.
    """
    side = int(max(FEWEST_PLACES, min(MOST_PLACES, most)) ** 0.5)
    rows, columns = (
        torch.linspace(min(RADIUS, (length - 1) // 2), length - 1 - min(RADIUS, (length - 1) // 2), min(side, length))
        .round()
        .long()
        .unique()
        for length in (height, width)
    )
    return (rows[:, None] * width + columns).flatten().tolist()


def _join(count: int, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return for each image the smallest one that it is connected with by pairs, shape ``(count,)``."""
    parents = list(range(count))

    def root(image: int) -> int:
        while parents[image] != image:
            image = parents[image]
        return image

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return torch.tensor([root(image) for image in range(count)], dtype=torch.long)


def _number(names: Sequence[Hashable]) -> torch.Tensor:
    """Number equal names alike, in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)
