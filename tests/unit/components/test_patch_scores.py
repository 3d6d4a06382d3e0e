# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Scores of all patches by one discriminator or several."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from anomalib_softpatch.components import DISCRIMINATORS, References, score_patches
from anomalib_softpatch.components.patch_scores import projection_matrix


@pytest.fixture
def features():
    return torch.randn(40, 4, 5, 16, generator=torch.Generator().manual_seed(0))


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
    """Scores are finite and not negative, and belong to the same images in any order."""
    generator = torch.Generator().manual_seed(seed)
    features = scale * (offset + torch.randn(images, *grid, dimensions, generator=generator))
    features[1 : 1 + duplicates] = features[:1]
    if constant:
        features[:, 0, 0] = features[0, 0, 0]
    options = {"lof_k": k, "neighborhood": neighborhood}
    if References(neighborhood, max_references).available(images, grid) < 1:
        with pytest.raises(ValueError, match=f"max_references={max_references}, some patches"):
            score_patches(features, (name,), **options, max_references=max_references)
        return
    scores = score_patches(features, (name,), **options, max_references=max_references).fused
    assert scores.shape == features.shape[:3]
    assert scores.isfinite().all()
    assert (scores >= 0).all()
    if max_references == 4096:
        swapped = score_patches(features.flip(0), (name,), **options).fused
        assert swapped.isfinite().all()
        if name == "nearest":
            torch.testing.assert_close(swapped.flip(0), scores, rtol=1e-4, atol=1e-4 * scale)


def test_one_discriminator(features):
    """Its scores are used as they are."""
    scores = score_patches(features, ("gaussian",), neighborhood=1, max_references=100, seed=2)
    expected = DISCRIMINATORS["gaussian"].score(features, References(1, 100, 2))
    assert torch.equal(scores.fused, expected)
    assert scores.by_discriminator.keys() == {"gaussian"}
    assert torch.equal(scores.by_discriminator["gaussian"], expected)


def test_several_discriminators(features):
    """The mean of their ranks, as computed by SciPy."""
    scores = score_patches(features, ("lof", "gaussian", "nearest"), lof_k=3)
    assert list(scores.by_discriminator) == ["lof", "gaussian", "nearest"]
    for name, own in scores.by_discriminator.items():
        discriminator = DISCRIMINATORS[name]
        assert torch.equal(
            own, discriminator.score(features, References(), **dict.fromkeys(discriminator.parameters, 3))
        )
    ranks = [(rankdata(own) - 1) / (own.numel() - 1) for own in scores.by_discriminator.values()]
    np.testing.assert_allclose(scores.fused.flatten(), np.mean(ranks, axis=0), atol=1e-6)


def test_many_channels_are_projected():
    """To 128 dimensions, by the matrix of the same seed: a projection beforehand gives the same scores."""
    features = torch.randn(10, 2, 3, 200, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        projected = features @ projection_matrix(200, features.device, seed)
        assert projected.shape[-1] == 128
        torch.testing.assert_close(score_patches(features, seed=seed).fused, score_patches(projected).fused)
    assert not torch.equal(score_patches(features).fused, score_patches(features, seed=1).fused)


def test_too_few_images(features):
    with pytest.raises(ValueError, match="at least 2 training images, got 1"):
        score_patches(features[:1])


def test_k_is_clamped(features):
    with pytest.warns(UserWarning, match="lof_k=6 exceeds the 3 patches"):
        scores = score_patches(features[:4], lof_k=6)
    torch.testing.assert_close(scores.fused, score_patches(features[:4], lof_k=3).fused)


def test_nan_is_reported(features):
    features[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="'nearest' gave NaN"):
        score_patches(features, ("nearest",))


@pytest.mark.parametrize(
    ("discriminators", "message"),
    [
        (("svm",), "Unknown discriminator 'svm': choose from gaussian, knn, lof, nearest"),
        (("lof", "lof"), "different names"),
        ((), "at least one"),
    ],
)
def test_bad_discriminators(features, discriminators, message):
    with pytest.raises(ValueError, match=message):
        score_patches(features, discriminators)


def test_bad_shape(features):
    with pytest.raises(ValueError, match=r"shape \(images, height, width, channels\), got \(40, 20, 16\)"):
        score_patches(features.flatten(1, 2))


def test_projection_keeps_distances():
    matrix = projection_matrix(512, torch.device("cpu"))
    rows = torch.randn(100, 512, generator=torch.Generator().manual_seed(0))
    ratio = torch.pdist(rows @ matrix) / torch.pdist(rows)
    assert 0.97 < ratio.mean() < 1.03
    assert projection_matrix(128, torch.device("cpu")) is None
