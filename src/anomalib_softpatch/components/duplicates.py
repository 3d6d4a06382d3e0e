# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Duplicates: groups of training images that are one image, copied exactly or nearly.

What several images show counts as normal, so a defect in an image that was copied would support itself. Therefore
copies count as one image.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anomalib_softpatch.components.progress import progress_bar
from anomalib_softpatch.components.references import References

# The distance to a copy is compared with that to the k-th nearest image, for these k. If one image has more copies than
# half of the last k, they are not recognized.
RANKS = (8, 16, 32)
# For images from a family of d dimensions, the distance to the k-th nearest image grows as k^(1/d). Rigid objects in
# any place and orientation are a family of three dimensions. A copy is nearer than that allows.
DIMENSION = 3.0
# With fewer images, copies cannot be distinguished from similar images: only exact copies count.
FEWEST_IMAGES = 20
# Patches of an image that are compared, and how far from its own place a patch of a copy may be: on a grid of 32, two
# patches cover a shift of 3 % and, at the edge, a rotation by 3 degrees
MOST_PLACES, FEWEST_PLACES = 64, 9
RADIUS = 2
# Largest number of comparisons of two patches, so that thousands of images are compared at fewer places
LARGEST_PRODUCT = 2**28
# Elements of the largest temporary tensor, and images that are compared with others at a time
BLOCK = 2**24
IMAGES_AT_A_TIME = 512
# With more images, each is compared only with this many evenly spread ones (with tens of thousands of images, with as
# few as the second number), and with its candidates: those most similar to it as a whole
MOST_COMPARED, FEWEST_COMPARED = 4096, 1024
CANDIDATES = 8
# To compare images as a whole: regions per side whose mean features are used, and dimensions after projection
REGIONS, DIMENSIONS = 4, 64


def duplicate_groups(hashes: Sequence[Hashable], features: torch.Tensor, progress: bool = False) -> torch.Tensor:
    """Group the images that are copies of each other.

    Exact copies have the same hash. Near copies (saved again as JPEG, rotated by up to 3 degrees, shifted by up to 3 %,
    photographed again in different light) are found by :func:`near_pairs`.

    Args:
        hashes: Hash of the content of each image.
        features: Features of the patches, shape ``(images, height, width, channels)``.
        progress: Show a progress bar.

    Returns:
        Number of each image's group, shape ``(images,)``: 0, 1, ... in the order of the first images of the groups.
    """
    numbers: dict[Hashable, int] = {}
    exact = torch.tensor([numbers.setdefault(each, len(numbers)) for each in hashes])
    pairs = near_pairs(features, progress, representatives(exact))
    edges = np.ones(len(pairs)), tuple(pairs.T.numpy())
    graph = coo_array(edges, shape=(len(numbers), len(numbers)))
    _, joined = connected_components(graph, directed=False)  # numbered in the order of their first members
    return torch.from_numpy(joined).long()[exact]


def representatives(groups: torch.Tensor) -> torch.Tensor:
    """Return the first image of each group.

    Args:
        groups: Number of each image's group, shape ``(images,)``.

    Returns:
        Indices of images in the order of the groups' numbers, shape ``(groups,)``.
    """
    return torch.from_numpy(np.unique(groups.cpu().numpy(), return_index=True)[1])


def near_pairs(features: torch.Tensor, progress: bool = False, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """Find pairs of images that are nearer to each other than different images are.

    For most patches of each image, the distance to the other image is less than ``(k / 4)^(-1/3)`` times the distance
    to the k-th nearest image, for k = 8, 16 or 32. The distance to an image is that to its nearest patch at about the
    same place. Two similar images that are unlike all others also count as copies: the two cases look the same. Sets of
    fewer than 20 images are not searched.

    With more than 4,096 images, the k-th nearest is searched among ``m`` evenly spread ones, from 4,096 down to 1,024
    for 30,000 images and more. Among all ``n`` images its rank is about ``k n / m``, which gives the factor. Only pairs
    that are most similar as a whole are compared, so the time grows with the number of images, not with its square.

    Args:
        features: Features of the patches, shape ``(images, height, width, channels)``.
        progress: Show a progress bar.
        chosen: Indices of the images to compare, shape ``(images,)``. Default: all. Features on disk stay there.

    Returns:
        Places in ``chosen``, each pair once, ascending, shape ``(pairs, 2)``.
    """
    _, height, width, channels = features.shape
    rows = torch.arange(len(features)) if chosen is None else chosen
    images, rows = len(rows), rows.to(features.device)
    if images < FEWEST_IMAGES:
        return torch.empty(0, 2, dtype=torch.long)
    device = features.device
    compared = images
    if images > MOST_COMPARED:
        compared = max(FEWEST_COMPARED, min(MOST_COMPARED, LARGEST_PRODUCT // (FEWEST_PLACES * images)))
    spread = torch.linspace(0, images - 1, compared, dtype=torch.double, device=device).round().long()
    ranks = torch.tensor([k for k in RANKS if k < compared / 2], device=device)
    factors = (ranks * images / compared / 4) ** (-2 / DIMENSION)  # of squares
    pairs = None if compared == images else _likely_pairs(features, rows)
    window = References(RADIUS).positions((height, width))[1].to(device)
    flat = features.flatten(1, 2)
    places = _places(height, width, LARGEST_PRODUCT // (images * compared))
    shape = (images, images) if pairs is None else (2, len(pairs))
    counts = torch.zeros(len(ranks), *shape, dtype=torch.uint8, device=device)
    with progress_bar(images * len(places), "Looking for copies", "patch", progress) as bar:
        for place in places:
            # Expanded squares lose digits far from the origin
            center = flat[rows, place].mean(dim=0)
            others = (flat[rows[spread][:, None], window[place]] - center).float().reshape(-1, channels)
            queries = (flat[rows, place] - center).float()
            norms = others.square().sum(dim=1)
            limits = queries.new_empty(len(ranks), images)
            size = max(1, min(IMAGES_AT_A_TIME, BLOCK // len(others)))
            for start in range(0, images, size):
                part = queries[start : start + size]
                squares = torch.addmm(norms, part, others.T, alpha=-2).view(len(part), compared, -1).amin(dim=2)
                squares = (squares + part.square().sum(dim=1, keepdim=True)).clamp_min_(0)
                own = torch.arange(start, start + len(part), device=device)
                squares.masked_fill_(own[:, None] == spread, torch.inf)
                nearest = squares.topk(int(ranks[-1]), dim=1, largest=False).values
                bar.update(len(part))
                limits[:, own] = (factors * nearest[:, ranks - 1]).T
                if pairs is None:
                    counts[:, own] += squares < limits[:, own, None]
            if pairs is not None:
                windows = flat[rows[:, None], window[place]]
                for way, (one, other) in enumerate((pairs.T, pairs.T.flip(0))):
                    counts[:, way] += _squares_of_pairs(queries, windows, center, one, other) < limits[:, one]
    most = (counts > len(places) // 2).any(dim=0)
    if pairs is None:
        return (most & most.T).triu(diagonal=1).nonzero().cpu()
    return pairs[most.all(dim=0)].cpu()


def _squares_of_pairs(
    queries: torch.Tensor, windows: torch.Tensor, center: torch.Tensor, one: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    """Return squared distances of patches, one of each image, to the nearest in the window of the other image."""
    size = max(1, BLOCK // windows[0].numel())
    return torch.cat(
        [
            ((windows[there] - center).float() - queries[here, None]).square().sum(dim=2).amin(dim=1)
            for here, there in zip(one.split(size), other.split(size), strict=True)
        ]
    )


def _likely_pairs(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return each image with those most similar to it as a whole, each pair once, ascending, shape ``(pairs, 2)``."""
    images, channels = len(rows), features.shape[-1]
    # Mean features of regions, which a shift of a few percent hardly changes
    matrix = torch.randn(channels * REGIONS**2, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    matrix = matrix.to(features.device)
    parts = []
    for part in rows.split(IMAGES_AT_A_TIME):
        regions = torch.nn.functional.adaptive_avg_pool2d(features[part].permute(0, 3, 1, 2).float(), REGIONS)
        parts.append(regions.flatten(1) @ matrix)
    wholes = torch.cat(parts)
    wholes -= wholes.mean(dim=0)
    norms = wholes.square().sum(dim=1)
    found = []
    for numbers in torch.arange(images, device=features.device).split(max(1, BLOCK // images)):
        squares = torch.addmm(norms, wholes[numbers], wholes.T, alpha=-2)
        squares[torch.arange(len(numbers)), numbers] = torch.inf
        nearest = squares.topk(min(CANDIDATES, images - 1), dim=1, largest=False).indices
        both = torch.stack((numbers[:, None].expand_as(nearest), nearest), dim=2).reshape(-1, 2)
        found.append(both.sort(dim=1).values)
    return torch.cat(found).unique(dim=0)


def _places(height: int, width: int, most: int) -> list[int]:
    """Return numbers of positions, at most ``most`` or a few, evenly spread over the grid without its border."""
    # A rotation or a shift fills the border, for example with black, which makes different images similar
    side = int(max(FEWEST_PLACES, min(MOST_PLACES, most)) ** 0.5)
    lines = []
    for length in (height, width):
        border = min(RADIUS, (length - 1) // 2)
        lines.append(torch.linspace(border, length - 1 - border, min(side, length)).round().long().unique())
    return (lines[0][:, None] * width + lines[1]).flatten().tolist()
