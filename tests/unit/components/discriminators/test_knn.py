# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distances to the k-th nearest image against scikit-learn and NumPy in float64."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from anomalib_softpatch.components import References, score_patches
from anomalib_softpatch.components.discriminators import knn
from samples import random_features


@pytest.mark.parametrize("k", [1, 2, 5, 39, 60])
def test_one_position_equals_scikit_learn(k):
    """With fewer than k other images, the last one counts."""
    features = random_features(40)
    scores = knn(features, References(), k)
    for row in range(4):
        for column in range(5):
            group = features[:, row, column].double().numpy()
            expected = NearestNeighbors(n_neighbors=min(k, 39)).fit(group).kneighbors()[0][:, -1]
            np.testing.assert_allclose(scores[:, row, column], expected, rtol=1e-5)


@pytest.mark.parametrize("neighborhood", [1, 2, "image"])
@pytest.mark.parametrize("k", [1, 2, 9])
def test_window_equals_numpy(neighborhood, k):
    """Each image counts once, by its nearest patch in a window that is shifted inward at the border."""
    features = random_features(10)
    scores = knn(features, References(neighborhood), k)
    exact = features.double().numpy()
    for image, row, column in np.ndindex(10, 4, 5):
        rows, columns = slice(None), slice(None)
        if neighborhood == 1:
            top, left = np.clip(row - 1, 0, 1), np.clip(column - 1, 0, 2)
            rows, columns = slice(top, top + 3), slice(left, left + 3)
        # With 4 x 5 positions, a window of radius 2 contains all rows and columns
        distances = np.linalg.norm(exact[:, rows, columns] - exact[image, row, column], axis=3).min(axis=(1, 2))
        expected = np.sort(np.delete(distances, image))[k - 1]
        assert scores[image, row, column] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
def test_few_references(neighborhood):
    """Only the patches that the references choose count, as in brute force."""
    features = random_features(8)
    references = References(neighborhood, max_references=7, seed=3)
    scores = knn(features, references, 2).flatten()
    flat = features.flatten(0, 2).double().numpy()
    for scored, compared in references.blocks(features, 16):
        for patches, others in zip(scored.numpy(), compared.numpy(), strict=True):
            for patch in patches:
                distances = np.linalg.norm(flat[others] - flat[patch], axis=1)
                images = set(others // 20) - {patch // 20}
                nearest = sorted(distances[others // 20 == image].min() for image in images)
                shown = len(set(others // 20)) - 1
                assert scores[patch] == pytest.approx(nearest[min(2, shown) - 1], rel=1e-5)


def test_a_defect_that_several_patches_show_does_not_support_itself():
    """For the second image and more, a defect of one other image does not support it either."""
    features = random_features(20) - 100
    defect = 30 * torch.randn(8, generator=torch.Generator().manual_seed(1))
    features[0, 1:3, 1:3] = features[0, 1:3, 1:3] * 0.01 + defect
    alone = knn(features, References(1), 1)[0, 1, 1]
    assert alone > 0.8 * defect.norm()
    features[5, 1:3, 1:3] = features[5, 1:3, 1:3] * 0.01 + defect
    assert knn(features, References(1), 1)[0, 1, 1] < 0.01 * defect.norm()
    assert knn(features, References(1), 2)[0, 1, 1] > 0.8 * defect.norm()


def test_copies_are_at_distance_zero():
    features = random_features(6) + 1000
    features[4] = features[1]
    scores = knn(features, References(), 1)
    assert (scores[[1, 4]] == 0).all()
    assert (scores[[0, 2, 3, 5]] > 0).all()


def test_k_of_the_scores():
    """It is a separate option from that of the local outlier factor."""
    features = random_features(12)
    scores = score_patches(features, ("knn", "lof"), lof_k=5, knn_k=3, neighborhood=1).by_discriminator
    assert torch.equal(scores["knn"], knn(features, References(1), 3))
    assert torch.equal(score_patches(features, ("lof",), lof_k=5, neighborhood=1).fused, scores["lof"])
    assert torch.equal(score_patches(features, ("knn",), lof_k=5).fused, knn(features, References(), 2))
