# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Look-alikes: the nearest patches of a suspicious one in other images, and images that show the same odd thing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

BLOCK = 2**24  # distances at a time


@dataclass(frozen=True)
class NearestInImages:
    """The nearest patch of each image to some patches.

    Attributes:
        distances: Distance to the nearest patch of each image in the neighborhood, shape ``(q, images)``; infinite for
            the own image.
        places: Position of that nearest patch in the grid, shape ``(q, images)``.
        anywhere: Distance to the nearest of all patches of each image, shape ``(q, images)``; infinite for the own one.
    """

    distances: torch.Tensor
    places: torch.Tensor
    anywhere: torch.Tensor

    def nearest(self, query: int, count: int) -> list[tuple[int, int, float]]:
        """Return image, position and distance of the patches nearest to one, at most one per image, nearest first."""
        order = self.distances[query].sort(stable=True)
        found = zip(order.indices[:count].tolist(), order.values[:count].tolist(), strict=True)
        return [(image, int(self.places[query, image]), each) for image, each in found if each < float("inf")]


@torch.no_grad()
def nearest_in_images(
    features: torch.Tensor, images: Sequence[int], places: Sequence[int], neighborhood: int | Literal["image"]
) -> NearestInImages:
    """Find the nearest patch of each image to some patches.

    Args:
        features: Features of all patches, shape ``(images, height, width, channels)``.
        images: Image of each of the patches.
        places: Position of each of the patches in the grid.
        neighborhood: Largest distance in rows and columns of the positions to compare; ``"image"``: all positions.
    """
    count, height, width, channels = features.shape
    own = torch.tensor(images, dtype=torch.long, device=features.device)
    at = torch.tensor(places, dtype=torch.long, device=features.device)
    flat = features.reshape(count, height * width, channels)
    queries = flat[own, at]
    grid = torch.arange(height * width, device=features.device)
    if neighborhood == "image":
        compared = torch.ones(len(own), height * width, dtype=torch.bool, device=features.device)
    else:
        at = at[:, None]
        rows_apart, columns_apart = (at // width - grid // width).abs(), (at % width - grid % width).abs()
        compared = torch.maximum(rows_apart, columns_apart) <= neighborhood
    step = max(1, BLOCK // max(1, len(own) * height * width))
    found = []
    for part in flat.split(step):
        every = torch.cdist(queries, part.reshape(-1, channels)).view(len(own), len(part), height * width)
        anywhere = every.amin(dim=2)
        found.append((*every.masked_fill_(~compared[:, None], torch.inf).min(dim=2), anywhere))
    distances, nearest, anywhere = (torch.cat(each, dim=1).cpu() for each in zip(*found, strict=True))
    for each in (distances, anywhere):
        each.scatter_(1, own[:, None].cpu(), torch.inf)
    return NearestInImages(distances, nearest, anywhere)


def look_alike_groups(anywhere: torch.Tensor, images: Sequence[int]) -> list[list[int]]:
    """Group suspicious images that show the same odd thing.

    Two of them do if the oddest patch of each is nearer to some patch of the other image than to all images that are
    not suspicious. By chance, the nearest of ``n + 1`` images is the other one in only one of ``n + 1`` cases, and both
    directions together are rarer. In a group, this holds for every pair (complete linkage).

    Args:
        anywhere: Distance of the oddest patch of each suspicious image to the nearest patch of every image, infinite
            for its own, shape ``(q, all images)``.
        images: Number of each of the ``q`` suspicious images among all images.

    Returns:
        The images of each group of two or more, as places in ``images``; groups are in the order of their first image.
    """
    usual = torch.ones(anywhere.shape[1], dtype=torch.bool)
    usual[list(images)] = False
    if len(images) < 2 or not bool(usual.any()):  # noqa: PLR2004  # nothing to group, or to compare with
        return []
    to_usual = anywhere[:, usual].amin(dim=1).double()
    between = anywhere[:, list(images)].double()
    ratios = torch.where(between < to_usual[:, None], between / to_usual[:, None], torch.inf)
    apart = torch.maximum(ratios, ratios.T).clamp(max=2.0).fill_diagonal_(0).numpy()  # 2: more than 1, and finite
    numbers = fcluster(linkage(squareform(apart, checks=False), "complete"), np.nextafter(1, 0), "distance")
    groups: dict[int, list[int]] = {}
    for place, number in enumerate(numbers.tolist()):
        groups.setdefault(number, []).append(place)
    return [group for group in groups.values() if len(group) > 1]
