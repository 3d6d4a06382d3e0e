# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The ensemble of small memory banks against brute force in NumPy's float64."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anomalib_softpatch.components import References
from anomalib_softpatch.components.discriminators import ensemble, lof
from anomalib_softpatch.components.discriminators.ensemble import bank_numbers
from samples import random_features


def brute_force(features: torch.Tensor, references: References) -> np.ndarray:
    """Patch by patch: the nearest of each bank, the lower median of them, smoothed, over the typical image's."""
    images, height, width, channels = features.shape
    patches = height * width
    flat = features.double().numpy().reshape(-1, channels)
    bank_of = bank_numbers(images, references.seed).numpy()
    distances = np.full(len(flat), np.nan)
    for scored, compared in references.blocks(features, cost=1):
        for queries, others in zip(scored.numpy(), compared.numpy(), strict=True):
            for query in queries:
                allowed = others[others // patches != query // patches]
                nearest = np.linalg.norm(flat[allowed] - flat[query], axis=1)
                banks = bank_of[allowed // patches]
                by_bank = sorted(nearest[banks == bank].min() for bank in set(banks.tolist()))
                distances[query] = by_bank[(len(by_bank) - 1) // 2]
    grid = gaussian_filter(distances.reshape(images, height, width), 1, mode="nearest", truncate=3, axes=(1, 2))
    typical = np.sort(grid, axis=0)[(images - 1) // 2]
    return grid / np.maximum(typical, 1e-3 * grid.mean())


@pytest.mark.parametrize("images", [2, 3, 4, 7, 10, 19])
@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
def test_equals_brute_force(images: int, neighborhood: int | str) -> None:
    features = random_features(images)
    references = References(neighborhood)
    np.testing.assert_allclose(ensemble(features, references), brute_force(features, references), rtol=1e-4)


@pytest.mark.parametrize(("images", "max_references", "seed"), [(150, 4096, 0), (40, 12, 0), (40, 12, 3), (9, 3, 1)])
def test_more_banks_and_fewer_references(images: int, max_references: int, seed: int) -> None:
    """More than eight banks where images are many; banks that no reference is of where these are few."""
    features = random_features(images, height=4, width=4)
    references = References(0, max_references, seed)
    np.testing.assert_allclose(ensemble(features, references), brute_force(features, references), rtol=1e-4)


@pytest.mark.parametrize(("images", "banks"), [(1, 1), (2, 2), (7, 7), (8, 8), (100, 8), (128, 8), (129, 9), (352, 22)])
def test_images_are_dealt_out_evenly(images: int, banks: int) -> None:
    numbers = bank_numbers(images, seed=0)
    sizes = numbers.bincount()
    assert len(sizes) == banks
    assert sizes.sum() == images
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(numbers, bank_numbers(images, seed=0))
    assert images < 7 or not torch.equal(numbers, bank_numbers(images, seed=1))


def test_copies_of_a_defect_stay_the_highest_scores() -> None:
    """Eight of 320 images have it, which the local outlier factor of six neighbours takes for normal."""
    features = random_features(320, 6, 6, 8)
    defective = torch.arange(0, 320, 40)
    generator = torch.Generator().manual_seed(1)
    defect = 15 * torch.randn(2, 2, 8, generator=generator)
    copies = 100 + defect + 0.1 * torch.randn(8, 2, 2, 8, generator=generator)
    features[defective, 2:4, 3:5] = copies
    factors = lof(features, References(), 6)
    assert factors[defective, 2:4, 3:5].max() < factors.quantile(0.95)
    highest = ensemble(features, References()).amax(dim=(1, 2))
    assert highest.argsort(descending=True)[:8].sort().values.tolist() == defective.tolist()
    assert highest[defective].min() > 2 * highest.median()


@pytest.mark.parametrize("images", [2, 3, 10])
@pytest.mark.parametrize("value", [0.0, 1e-20, 1.0, 1e6])
def test_equal_images_are_neutral(images: int, value: float) -> None:
    assert torch.equal(ensemble(torch.full((images, 4, 5, 8), value), References()), torch.zeros(images, 4, 5))
    repeated = value * random_features(1).expand(images, -1, -1, -1).contiguous()
    assert torch.equal(ensemble(repeated, References()), torch.zeros(images, 4, 5))


@pytest.mark.parametrize("copies", [3, 6, 9])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_exact_duplicates(copies: int, scale: float) -> None:
    """Distances of copies are zero whatever the scale; what differs from many copies is finite and the highest."""
    features = random_features(10)
    features[:copies] = features[:1]
    scores = ensemble(scale * features, References())
    np.testing.assert_allclose(scores, brute_force(scale * features, References()), rtol=1e-3)
    if copies == 9:
        assert scores[:9].max() == 0
        assert scores[9].min() > 1
        assert scores.isfinite().all()


def test_a_grey_level_in_a_black_corner_is_no_outlier() -> None:
    features = random_features(30, 8, 8) - 100
    features[:, :4, :4] = 0
    features[7, 0, 0] = 1e-4
    scores = ensemble(features, References())
    assert scores[7, 0, 0] < scores.median()
