# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Duplicates: groups of training images that are one image, copied exactly or nearly.

Discriminators take what is frequent for normal, so that a defect whose image was copied vouches for itself. One vote
a group mends that: the discriminators score one image of each group, and the others get its scores.
"""

from collections.abc import Hashable, Sequence

import torch
from torch.nn import functional as F  # noqa: N812

# Neighbours of each image that its distances are judged by. An image with so many near copies is not recognized.
NEIGHBORS = 10
# Of the neighbours, the nearest ones may be copies and do not take part in the estimate of the set's dimension.
POSSIBLE_COPIES = 4
# With fewer images there is too little to tell a copy from a similar image by: exact copies only.
FEWEST_IMAGES = 2 * NEIGHBORS
# Expected number of pairs per set that are grouped by chance
FALSE_PAIRS = 0.05
# A copy's distance is below this share of that to the tenth neighbour, whatever the estimate says.
LARGEST_RATIO = 0.9
DESCRIPTOR_SIZE = 8  # side of the pooled grid in which candidates are found
# Share of the grid's side that is left out at each edge: what a rotation or a shift brings in there, be it black, makes
# different images alike.
BORDER = 1 / 16


def duplicate_groups(
    hashes: Sequence[Hashable] | None = None, features: torch.Tensor | None = None, block_size: int = 512
) -> torch.Tensor:
    """Group the images that are copies of each other.

    Exact copies have the same hash. Near copies (saved again as JPEG, rotated or shifted a little) are nearer to each
    other than chance allows: of points in a space of dimension m, the ratio of the distances to the first and the
    tenth neighbour, to the power of m, is distributed as the smallest of nine uniform numbers. The dimension is
    estimated from the set's own fifth to tenth neighbours (Levina and Bickel, Maximum likelihood estimation of
    intrinsic dimension, NIPS 2004, equation 8), so that sets of images that are all alike, as aligned ones are, get a
    bound that normal images of theirs keep. On KolektorSDD (MobileNetV2 features, 180 images and 30 copies) all copies
    saved as JPEG of quality 95 to 50 and all rotated by one degree are grouped, none of those rotated by three degrees
    or shrunk to half the size, and no image is grouped that is no copy.

    Args:
        hashes: Hash of the content of each image; ``None`` not to look for exact copies.
        features: Features of the patches, shape ``(images, height, width, channels)``; ``None`` not to look for near
            copies. Sets of less than 20 different images are not searched for them.
        block_size: Number of images that are compared with all others at a time.

    Returns:
        Number of each image's group, shape ``(images,)``: 0, 1, ... in the order of the groups' first images.

    Raises:
        ValueError: If there are neither hashes nor features, or different numbers of both.
    """
    if hashes is not None and features is not None and len(hashes) != len(features):
        msg = f"There are {len(hashes)} hashes, but features of {len(features)} images."
        raise ValueError(msg)
    if hashes is not None:
        exact = _number(hashes)
    elif features is not None:
        exact = torch.arange(len(features))
    else:
        msg = "duplicate_groups needs hashes, features, or both."
        raise ValueError(msg)
    if features is None:
        return exact
    first = representatives(exact)
    pairs = near_pairs(features[first.to(features.device)], block_size)
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


def near_pairs(features: torch.Tensor, block_size: int = 512) -> torch.Tensor:
    """Find pairs of images that are nearer to each other than chance allows, see :func:`duplicate_groups`.

    Candidates are the nearest ones by features pooled to 8 x 8 patches; their distances are those of all patches but
    the ones at the edge of the image.

    Args:
        features: Features of the patches, shape ``(images, height, width, channels)``.
        block_size: Number of images that are compared with all others at a time.

    Returns:
        Indices of the images, shape ``(pairs, 2)``.
    """
    if len(features) < FEWEST_IMAGES:
        return torch.empty(0, 2, dtype=torch.long)
    top, left = (round(BORDER * side) for side in features.shape[1:3])
    inner = features[:, top : features.shape[1] - top, left : features.shape[2] - left]
    distances, neighbors = _nearest_images(inner, block_size)
    bound = _bound(distances)
    # Both images must find the other exceptionally near, and nearer than the set's images usually are: two that are
    # both unlike the rest may be each other's nearest by far without being copies.
    tenth = distances[:, -1].clamp(max=distances[:, -1].median())
    limits = bound * torch.minimum(tenth[:, None], tenth[neighbors])
    image, place = (distances <= limits).nonzero(as_tuple=True)
    return torch.stack((image, neighbors[image, place]), dim=1)


def _nearest_images(features: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances to and indices of each image's nearest ones, shape ``(images, NEIGHBORS)``, ascending."""
    pooled = torch.cat(
        [
            F.adaptive_avg_pool2d(part.permute(0, 3, 1, 2).float(), DESCRIPTOR_SIZE).flatten(1)
            for part in features.split(block_size)
        ]
    )
    pooled -= pooled.mean(dim=0)  # squared distances by products lose digits far from the origin
    blocks = []
    for start in range(0, len(pooled), block_size):
        rough = torch.cdist(pooled[start : start + block_size], pooled)
        rough[torch.arange(len(rough)), torch.arange(start, start + len(rough))] = torch.inf
        blocks.append(rough.topk(NEIGHBORS, dim=1, largest=False).indices)
    neighbors = torch.cat(blocks)
    distances = torch.stack(
        [
            torch.linalg.vector_norm((features[candidates] - features[image]).float(), dim=(1, 2, 3))
            for image, candidates in enumerate(neighbors)
        ]
    )
    distances, order = distances.sort(dim=1, stable=True)
    return distances.cpu(), neighbors.gather(1, order).cpu()


def _bound(distances: torch.Tensor) -> float:
    """Return the ratio to the last distance below which a distance is too small to be chance."""
    tiny = torch.finfo(distances.dtype).tiny
    ratios = distances[:, POSSIBLE_COPIES:-1] / distances[:, -1:].clamp_min(tiny)
    # Levina and Bickel's estimate of 1 / m, averaged over the images as MacKay and Ghahramani advise. The expected
    # logarithm of the ratio of the k-th to the j-th distance is the sum of 1 / i over i = j ... k - 1, divided by m.
    expected = [sum(1 / i for i in range(j, NEIGHBORS)) for j in range(POSSIBLE_COPIES + 1, NEIGHBORS)]
    inverse_dimension = -ratios.clamp_min(1e-6).log().mean() / (sum(expected) / len(expected))
    smallest = torch.tensor(FALSE_PAIRS / (len(distances) * (NEIGHBORS - 1)))
    return min(LARGEST_RATIO, (inverse_dimension * smallest.log()).exp().item())


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
