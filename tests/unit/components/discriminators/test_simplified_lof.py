# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The simplified local outlier factor against brute force in NumPy's float64, and what it is there for."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anomalib_softpatch.components import References
from anomalib_softpatch.components.discriminators import ensemble, lof, simplified_lof
from anomalib_softpatch.components.discriminators.simplified_lof import number_of_neighbors
from samples import random_features


def brute_force(features: torch.Tensor, references: References) -> np.ndarray:
    """Patch by patch: each image by its nearest patch, the k-th of them over the lower quartile of the same for k."""
    images, height, width, channels = features.shape
    patches = height * width
    flat = features.double().numpy().reshape(-1, channels)
    distances, neighbors = np.empty(len(flat)), {}
    for scored, compared in references.blocks(features, cost=1):
        for queries, others in zip(scored.numpy(), compared.numpy(), strict=True):
            known = sorted(set((others // patches).tolist()))
            k = min(len(known) - 1, max(3, math.ceil((len(known) - 1) / 5)))
            for query in queries:
                nearest = []
                for image in known:
                    own = others[others // patches == image]
                    if image != query // patches:
                        lengths = np.linalg.norm(flat[own] - flat[query], axis=1)
                        nearest.append((lengths.min(), own[lengths.argmin()]))
                nearest = sorted(nearest)[:k]
                distances[query], neighbors[query] = nearest[-1][0], [number for _, number in nearest]
    distances = np.maximum(distances, 1e-3 * distances.mean())
    lower = [np.sort(distances[neighbors[n]])[math.ceil(len(neighbors[n]) / 4) - 1] for n in range(len(flat))]
    factors = (distances / np.array(lower)).reshape(images, height, width)
    return gaussian_filter(factors, 1, mode="nearest", truncate=3, axes=(1, 2))


@pytest.mark.parametrize("images", [2, 3, 4, 5, 11, 30])
@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
def test_equals_brute_force(images: int, neighborhood: int | str) -> None:
    features = random_features(images)
    references = References(neighborhood)
    np.testing.assert_allclose(simplified_lof(features, references), brute_force(features, references), rtol=1e-4)


@pytest.mark.parametrize(("max_references", "neighborhood"), [(12, 0), (50, 1), (60, "image")])
def test_fewer_references(max_references: int, neighborhood: int | str) -> None:
    """Some images have no reference, some have several."""
    features = random_features(25, height=4, width=4)
    references = References(neighborhood, max_references, seed=3)
    np.testing.assert_allclose(simplified_lof(features, references), brute_force(features, references), rtol=1e-4)


@pytest.mark.parametrize(("images", "k"), [(2, 1), (3, 2), (4, 3), (16, 3), (17, 4), (101, 20), (352, 71)])
def test_number_of_neighbors(images: int, k: int) -> None:
    assert number_of_neighbors(images) == k


def test_the_order_of_the_images_changes_nothing() -> None:
    features = random_features(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        simplified_lof(features[order], References()), simplified_lof(features, References())[order]
    )


def shown_by(count: int, images: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Features where some of the images show something of its own at four patches, and these images."""
    features = random_features(images, 6, 6, 8)
    chosen = torch.linspace(0, images - 1, count).long()
    generator = torch.Generator().manual_seed(1)
    shown = 15 * torch.randn(2, 2, 8, generator=generator)
    features[chosen, 2:4, 3:5] = 100 + shown + torch.randn(count, 2, 2, 8, generator=generator)
    return features, chosen


@pytest.mark.parametrize("count", [1, 4, 10, 14])
def test_what_few_images_show_scores_highest(count: int) -> None:
    """Up to three quarters of the neighbours' number, a fifth of the images; lof takes it for normal beyond six."""
    features, defective = shown_by(count)
    highest = simplified_lof(features, References()).amax(dim=(1, 2))
    assert highest.argsort(descending=True)[:count].sort().values.tolist() == defective.tolist()
    if count >= 10:
        assert lof(features, References(), 6)[defective, 2:4, 3:5].mean() < 1.2


@pytest.mark.parametrize("count", [25, 40])
def test_what_more_images_show_is_normal(count: int) -> None:
    """The ensemble divides by the typical image, which does not show it, and would remove all of it."""
    features, chosen = shown_by(count)
    scores = simplified_lof(features, References())
    assert scores[chosen, 2:4, 3:5].mean() < scores.mean() + scores.std()
    other = ensemble(features, References())
    if count == 25:
        assert other[chosen, 2:4, 3:5].mean() > 0.95 * other.mean()


@pytest.mark.parametrize("images", [2, 3, 10])
@pytest.mark.parametrize("value", [0.0, 1e-20, 1.0, 1e6])
def test_equal_images_are_neutral(images: int, value: float) -> None:
    ones = torch.ones(images, 4, 5)
    torch.testing.assert_close(simplified_lof(torch.full((images, 4, 5, 8), value), References()), ones)
    repeated = value * random_features(1).expand(images, -1, -1, -1).contiguous()
    torch.testing.assert_close(simplified_lof(repeated, References()), ones)


def test_a_grey_level_in_a_black_corner_is_no_outlier() -> None:
    features = random_features(30, 8, 8) - 100
    features[:, :4, :4] = 0
    features[7, 0, 0] = 1e-4
    scores = simplified_lof(features, References())
    assert scores[7, 0, 0] < scores.quantile(0.9)
