# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Support: how much of the training patches can go before normal images look unusual, and how far a patch can vouch.

Where images are aligned, the patches that score highest are noise or have others like them, and many can go. Of objects
that lie in any direction, what is rare at its position is common elsewhere: nearly every patch that goes is a normal
one that is missed later. What tells the two apart is the typical image, which is normal whatever the noise.
"""

import math

import torch

# Shares of all patches at which the curve is known
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5)
# How much more unusual the typical image may look: about the geometric mean of what aligned images show, 1.06 at 50 %
# (KolektorSDD, with and without noise), and objects in any direction, 1.28 at 25 % (synthetic plates; MobileNetV2).
LARGEST_GROWTH = 1.15
# Patches of each image whose support is looked at, from the upper quarter of its scores
QUERIES = 8
# Patches that they are compared with
REFERENCES = 2**16
# Products of a support distance: more patches than that are thinned
LARGEST_PRODUCT = 2**37
BLOCK = 2**23
# Of a normal distribution, in median absolute deviations
STANDARD_DEVIATION = 1.4826


def support_curve(features: torch.Tensor, scores: torch.Tensor, shares: tuple[float, ...] = SHARES) -> torch.Tensor:
    """Return how unusual each image looks once the highest-scoring patches of all other images are gone.

    An image's figure is the largest distance of a few of its more unusual patches to the nearest patch, at any
    position, that stays in another image.

    Args:
        features: Shape ``(images, height, width, dimensions)``.
        scores: Noise scores, shape ``(images, height, width)``.
        shares: Shares of all patches that go, ascending.

    Returns:
        Shape ``(images, shares)``, not falling along the shares.
    """
    images, patches = len(scores), scores[0].numel()
    flat = features.flatten(0, 2)
    flat = flat - flat.mean(dim=0)
    upper = max(1, patches // 4)
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    chosen = order[:, : upper : max(1, upper // QUERIES)]
    owner = torch.arange(images, device=scores.device)[:, None]
    query, own = flat[(owner * patches + chosen).flatten()], owner.expand_as(chosen).flatten()

    ascending = scores.flatten().argsort(stable=True)
    ascending = ascending[:: max(1, len(ascending) // REFERENCES)]
    stops = [max(1, int(len(ascending) * (1 - share))) for share in shares]
    curve = query.new_full((len(query), len(shares)), torch.inf)
    for number, (stop, start) in enumerate(zip(stops, [*stops[1:], 0], strict=True)):
        if start == stop:  # few patches: none goes between the two shares
            continue
        for part in ascending[start:stop].split(max(1, BLOCK // len(query))):
            distances = _squares(query, flat[part])
            distances.masked_fill_(own[:, None] == part // patches, torch.inf)
            curve[:, number] = torch.minimum(curve[:, number], distances.amin(dim=1))
    # What stays at a share stays at all smaller ones
    curve = curve.flip(1).cummin(dim=1).values.flip(1).sqrt()
    return curve.view(images, -1, len(shares)).amax(dim=1)


def bearable_share(
    curve: torch.Tensor, largest: float, growth: float = LARGEST_GROWTH, shares: tuple[float, ...] = SHARES
) -> float:
    """Return the largest share that can go without the typical image looking more unusual than it should.

    The typical image is the median of the images' growth, so that it is a normal one while most images are.

    Args:
        curve: See :func:`support_curve`.
        largest: Upper limit of the share.
        growth: Largest factor by which the typical image may become more unusual.
        shares: Shares that the curve is of.

    Returns:
        A share, between two of the curve's by linear interpolation.
    """
    valid = curve[:, 0].isfinite() & (curve[:, 0] > 0)
    if not valid.any():
        return 0.0
    typical = (curve[valid] / curve[valid, :1]).median(dim=0).values.tolist()
    for number, value in enumerate(typical[1:], start=1):
        if value > growth:
            below = typical[number - 1]
            step = 0.0 if math.isinf(value) else (growth - below) / (value - below)
            return min(largest, shares[number - 1] + step * (shares[number] - shares[number - 1]))
    return min(largest, shares[-1])


def support_distances(features: torch.Tensor, indices: torch.Tensor, k: int = 2) -> torch.Tensor:
    """Return how far patches are from the k-th nearest other image, at any position.

    As a further coordinate r of a patch of the memory bank, 0 in queries, it makes the distance sqrt(d^2 + r^2): a
    patch vouches for others as far as other images vouch for it. A defect that is in training scores as it would if
    only other images were there; with k = 2, one copy of it does not change that.

    Args:
        features: Shape ``(images, height, width, dimensions)``.
        indices: Numbers of the patches, ``image * height * width + row * width + column``, shape ``(m,)``.
        k: Which of the other images, by distance; the last one where there are fewer.

    Returns:
        Shape ``(m,)``.
    """
    images, height, width, dimensions = features.shape
    patches = height * width
    k = min(k, images - 1)
    flat = features.flatten(0, 2)
    flat = flat - flat.mean(dim=0)
    step = max(1, math.ceil(len(indices) * len(flat) * dimensions / LARGEST_PRODUCT))
    places = torch.arange(0, patches, min(step, patches), device=flat.device)
    compared = flat.view(images, patches, dimensions)[:, places].flatten(0, 1)
    distances = flat.new_empty(len(indices))
    for some, out in zip(*(each.split(max(1, BLOCK // len(compared))) for each in (indices, distances)), strict=True):
        nearest = _squares(flat[some], compared).view(len(some), images, -1).amin(dim=2)
        nearest[torch.arange(len(some)), some // patches] = torch.inf
        out.copy_(nearest.topk(k, dim=1, largest=False).values[:, -1].sqrt())
    return distances


def exceptional_distances(distances: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return support distances of patches that have less support than normal patches, and 0 in place of the others.

    Rare normal patches have little support, too. Most images are normal, so that the median over the images of the
    largest distance of their patches, and the median absolute deviation, say what normal images have: up to one robust
    standard deviation above the median, a patch vouches fully.

    Args:
        distances: See :func:`support_distances`, shape ``(m,)``.
        images: Which image each patch is of, shape ``(m,)``.

    Returns:
        Shape ``(m,)``.
    """
    if not len(distances):
        return distances
    largest = distances.new_full((int(images.max()) + 1,), -1.0).scatter_reduce(0, images, distances, reduce="amax")
    largest = largest[largest >= 0]
    typical = largest.median()
    deviation = STANDARD_DEVIATION * (largest - typical).abs().median()
    return torch.where(distances > typical + deviation, distances, 0.0)


def _squares(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return squared distances of centred rows, shape ``(n, m)``."""
    squares = torch.addmm(others.square().sum(dim=1)[None], rows, others.T, alpha=-2)
    return (squares + rows.square().sum(dim=1, keepdim=True)).clamp_min_(0)
