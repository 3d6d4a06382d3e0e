# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise discriminators against scikit-learn and NumPy in float64."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from anomalib_softpatch.components import DISCRIMINATORS, References


@pytest.fixture
def features():
    """Features of 40 images, far from the origin, where expanded distances lose digits."""
    generator = torch.Generator().manual_seed(0)
    return 100 + torch.randn(40, 4, 5, 16, generator=generator)


def score(features, name, references=None, k=6):
    discriminator = DISCRIMINATORS[name]
    return discriminator.score(features, references or References(), **dict.fromkeys(discriminator.parameters, k))


def positions(tensor):
    """Return the values by position of the grid, in float64."""
    return tensor.flatten(1, 2).double().numpy().swapaxes(0, 1)


@pytest.mark.parametrize("k", [1, 6, 39])
def test_lof_equals_scikit_learn(features, k):
    scores = score(features, "lof", k=k)
    for group, actual in zip(positions(features), positions(scores), strict=True):
        expected = -LocalOutlierFactor(n_neighbors=k).fit(group).negative_outlier_factor_
        np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_nearest_equals_scikit_learn(features):
    scores = score(features, "nearest")
    for group, actual in zip(positions(features), positions(scores), strict=True):
        expected = NearestNeighbors(n_neighbors=1).fit(group).kneighbors()[0][:, 0]
        np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_gaussian_equals_scikit_learn(features):
    scores = score(features, "gaussian")
    for group, actual in zip(positions(features), positions(scores), strict=True):
        estimator = EmpiricalCovariance().fit(group)
        unbiased = estimator.covariance_ * len(group) / (len(group) - 1)
        precision = np.linalg.inv(unbiased + 0.01 * np.eye(group.shape[1]))
        centered = group - group.mean(axis=0)
        expected = np.sqrt(np.einsum("nd,de,ne->n", centered, precision, centered))
        np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
def test_small_blocks_change_nothing(features, name, neighborhood):
    whole = score(features, name, References(neighborhood))
    blocks = score(features, name, References(neighborhood, block_size=2000))
    torch.testing.assert_close(blocks, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("k", [3, 6])
def test_duplicates_are_neutral(name, scale, k):
    """Constant and repeated images get finite scores, equal for equal patches."""
    features = scale * torch.randn(10, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    features[5:] = features[:1]
    scores = score(features, name, k=3)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[5:], scores[:1].expand(5, -1, -1), rtol=1e-4, atol=1e-6)
    constant = score(torch.full((10, 4, 5, 8), scale), name, k=k)
    neutral = 1.0 - DISCRIMINATORS[name].weight_offset
    torch.testing.assert_close(constant, torch.full((10, 4, 5), neutral), rtol=1e-4, atol=1e-4)


def test_tiny_differences_from_duplicates_are_not_outliers():
    """LOF divides by the density of the neighbors, which is infinite for exact duplicates."""
    features = torch.randn(30, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    features[:, 0, 0] = 0.0  # a black corner in all images
    features[7, 0, 0] = 1e-4  # except for one gray level
    scores = score(features, "lof")
    assert scores[7, 0, 0] < 1.5
