# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise discriminators against scikit-learn and NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from anomalib_softpatch.components import DISCRIMINATORS, Comparison, nearest_patches, noise_scores
from anomalib_softpatch.components.discriminators import projection_matrix

GRID = (4, 5)


@pytest.fixture
def features():
    """Features of 40 images, far from the origin, where expanded distances lose digits."""
    generator = torch.Generator().manual_seed(0)
    return 100 + torch.randn(40, GRID[0] * GRID[1], 16, generator=generator)


@pytest.mark.parametrize("k", [1, 6, 39])
def test_lof_equals_scikit_learn(features, k):
    scores = noise_scores(features, "lof", Comparison(GRID), k)
    for position in range(features.shape[1]):
        group = features[:, position].double().numpy()
        expected = -LocalOutlierFactor(n_neighbors=k).fit(group).negative_outlier_factor_
        np.testing.assert_allclose(scores[:, position], expected, rtol=1e-3)


def test_nearest_equals_scikit_learn(features):
    scores = noise_scores(features, "nearest", Comparison(GRID))
    for position in range(features.shape[1]):
        group = features[:, position].double().numpy()
        expected = NearestNeighbors(n_neighbors=1).fit(group).kneighbors()[0][:, 0]
        np.testing.assert_allclose(scores[:, position], expected, rtol=1e-4)


def test_gaussian_equals_scikit_learn(features):
    scores = noise_scores(features, "gaussian", Comparison(GRID))
    for position in range(features.shape[1]):
        group = features[:, position].double().numpy()
        estimator = EmpiricalCovariance().fit(group)
        unbiased = estimator.covariance_ * len(group) / (len(group) - 1)
        precision = np.linalg.inv(unbiased + 0.01 * np.eye(group.shape[1]))
        centered = group - group.mean(axis=0)
        expected = np.sqrt(np.einsum("nd,de,ne->n", centered, precision, centered))
        np.testing.assert_allclose(scores[:, position], expected, rtol=1e-3)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
def test_small_blocks_change_nothing(features, name, neighborhood):
    whole = noise_scores(features, name, Comparison(GRID, neighborhood))
    blocks = noise_scores(features, name, Comparison(GRID, neighborhood, block_size=2000))
    torch.testing.assert_close(blocks, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neighborhood", [1, 2, 9, "image"])
def test_nearest_patches_of_a_neighborhood(features, neighborhood):
    """Brute force in float64: windows are moved inwards at the border, and an image never sees itself."""
    images, patches, _ = features.shape
    distances, indices = nearest_patches(features, Comparison(GRID, neighborhood), k=3)
    radius = 99 if neighborhood == "image" else neighborhood

    def window(place, length):
        size = min(2 * radius + 1, length)
        start = min(max(place - radius, 0), length - size)
        return range(start, start + size)

    flat = features.double().numpy().reshape(images * patches, -1)
    for patch in range(0, images * patches, 37):
        image, position = divmod(patch, patches)
        row, column = divmod(position, GRID[1])
        allowed = [
            other * patches + y * GRID[1] + x
            for other in range(images)
            if other != image
            for y in window(row, GRID[0])
            for x in window(column, GRID[1])
        ]
        expected = np.linalg.norm(flat[allowed] - flat[patch], axis=1)
        order = np.argsort(expected)[:3]
        np.testing.assert_allclose(distances[patch], expected[order], rtol=1e-5)
        assert indices[patch].tolist() == np.array(allowed)[order].tolist()


def test_reference_subset(features):
    """Beyond the limit, a seeded subset of the references serves, and defects still stand out."""
    features[3] += 10
    comparison = Comparison(GRID, max_references=20)
    scores = noise_scores(features, "lof", comparison)
    assert torch.equal(scores, noise_scores(features, "lof", comparison))
    assert not torch.equal(scores, noise_scores(features, "lof", Comparison(GRID, max_references=20, seed=1)))
    assert scores.mean(dim=1).argmax() == 3


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("k", [3, 6])
def test_duplicates_are_neutral(name, scale, k):
    """Constant and repeated images get finite scores, equal for equal patches."""
    features = scale * torch.randn(10, 20, 8, generator=torch.Generator().manual_seed(0))
    features[5:] = features[:1]
    scores = noise_scores(features, name, Comparison(GRID), k=3)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[5:], scores[:1].expand(5, -1), rtol=1e-4, atol=1e-6)
    constant = noise_scores(torch.full((10, 20, 8), scale), name, Comparison(GRID), k=k)
    neutral = 1.0 if name == "lof" else 0.0
    torch.testing.assert_close(constant, torch.full((10, 20), neutral), rtol=1e-4, atol=1e-4)


def test_tiny_differences_beside_duplicates_are_no_outliers():
    """LOF divides by the density of the neighbours, which is infinite for exact duplicates."""
    features = torch.randn(30, 20, 8, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 0.0  # a black corner in all images
    features[7, 0] = 1e-4  # but for one grey level
    scores = noise_scores(features, "lof", Comparison(GRID))
    assert scores[7, 0] < 1.5


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(DISCRIMINATORS)),
    images=st.integers(2, 12),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dimensions=st.integers(1, 8),
    k=st.integers(1, 20),
    neighborhood=st.sampled_from([0, 1, "image"]),
    max_references=st.sampled_from([7, 30, 4096]),
    scale=st.sampled_from([0.0, 1e-20, 1e-6, 1.0, 1e6, 1e18]),
    offset=st.sampled_from([0.0, 100.0]),
    duplicates=st.integers(0, 11),
    constant=st.booleans(),
    seed=st.integers(0, 20),
)
@pytest.mark.filterwarnings("ignore:lof_k")
def test_any_features(
    name, images, grid, dimensions, k, neighborhood, max_references, scale, offset, duplicates, constant, seed
):
    """Scores are finite, none below zero, and follow the images where these change places."""
    generator = torch.Generator().manual_seed(seed)
    features = scale * (offset + torch.randn(images, grid[0] * grid[1], dimensions, generator=generator))
    features[1 : 1 + duplicates] = features[:1]
    if constant:
        features[:, 0] = features[0, 0]
    comparison = Comparison(grid, neighborhood, max_references)
    if comparison.available(images) < 1:
        with pytest.raises(ValueError, match=f"max_references={max_references} leaves"):
            noise_scores(features, name, comparison, k)
        return
    scores = noise_scores(features, name, comparison, k)
    assert scores.shape == features.shape[:2]
    assert scores.isfinite().all()
    assert (scores >= 0).all()
    if max_references == 4096:
        swapped = noise_scores(features.flip(0), name, Comparison(grid, neighborhood), k)
        assert swapped.isfinite().all()
        if name == "nearest":
            torch.testing.assert_close(swapped.flip(0), scores, rtol=1e-4, atol=1e-4 * scale)


def test_too_few_images(features):
    with pytest.raises(ValueError, match="at least 2 training images, got 1"):
        noise_scores(features[:1], "lof", Comparison(GRID))


def test_k_is_clamped(features):
    with pytest.warns(UserWarning, match="lof_k=6 exceeds the 3 patches"):
        scores = noise_scores(features[:4], "lof", Comparison(GRID), k=6)
    torch.testing.assert_close(scores, noise_scores(features[:4], "lof", Comparison(GRID), k=3))


def test_nan_is_reported(features):
    features[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="'nearest' gave NaN"):
        noise_scores(features, "nearest", Comparison(GRID))


def test_projection_keeps_distances():
    matrix = projection_matrix(512, torch.device("cpu"))
    rows = torch.randn(100, 512, generator=torch.Generator().manual_seed(0))
    ratio = torch.pdist(rows @ matrix) / torch.pdist(rows)
    assert 0.97 < ratio.mean() < 1.03
    assert projection_matrix(128, torch.device("cpu")) is None
