# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Prototypes against brute force in NumPy's float64, and where a memory bank has them."""

import math

import numpy as np
import pytest
import torch

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore, prototypes
from anomalib_softpatch.components.prototypes import prototypes as make_prototypes

OPTIONS = {"discriminators": ("simplified_lof",), "coreset_sampling_ratio": 0.1, "soft_weight": False}


def random_features(images: int, channels: int = 8) -> torch.Tensor:
    return 100 + torch.randn(images, 4, 5, channels, generator=torch.Generator().manual_seed(0))


def stored(features: torch.Tensor) -> FeatureStore:
    store = FeatureStore()
    store.append(features)
    return store


def brute_force(features: torch.Tensor, indices: torch.Tensor) -> np.ndarray:
    images, patches = len(features), features[0, ..., 0].numel()
    grid = features.double().numpy().reshape(images, patches, -1)
    rows = []
    for index in indices.tolist():
        image, position = divmod(index, patches)
        lengths = np.linalg.norm(grid[:, position] - grid[image, position], axis=1)
        nearest = np.argsort(lengths, kind="stable")[: min(images - 1, math.ceil(images / 20)) + 1]
        rows.append(grid[nearest, position].mean(axis=0))
    return np.stack(rows)


@pytest.mark.parametrize("images", [2, 3, 20, 21, 90])
def test_equals_brute_force(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototypes, "BLOCK", 2000)
    features = random_features(images)
    indices = torch.randperm(images * 20, generator=torch.Generator().manual_seed(1))[:30]
    actual = make_prototypes(stored(features), features, indices)
    np.testing.assert_allclose(actual, brute_force(features, indices), rtol=1e-6)


def test_one_image_and_copies_stay_as_they_are() -> None:
    features = random_features(1)
    torch.testing.assert_close(make_prototypes(stored(features), features, torch.arange(20)), features.flatten(0, 2))
    copies = features.expand(9, -1, -1, -1).contiguous()
    actual = make_prototypes(stored(copies), copies, torch.arange(180))
    torch.testing.assert_close(actual, copies.flatten(0, 2))


def test_neighbours_are_found_in_the_projection_and_averaged_in_full() -> None:
    features = random_features(40, channels=200)
    result = DenoisingMemoryBank(**OPTIONS, thresholds=(0.2,), prototypes=True).fit(features)
    plain = DenoisingMemoryBank(**OPTIONS, thresholds=(0.2,)).fit(features)
    assert torch.equal(result.indices, plain.indices)
    assert result.features.shape == plain.features.shape == (80, 200)
    mean = features.mean(dim=0).flatten(0, 1)[result.indices % 20]
    assert (result.features - mean).norm(dim=1).max() < (plain.features - mean).norm(dim=1).min()


def test_nothing_removed_and_nothing_weighed_is_patchcore() -> None:
    features = random_features(40)
    result = DenoisingMemoryBank(**OPTIONS, thresholds=(0,), prototypes=True).fit(features)
    assert torch.equal(result.features, features.flatten(0, 2)[result.indices])


def test_only_yes_or_no() -> None:
    with pytest.raises(ValueError, match="prototypes must be one of"):
        DenoisingMemoryBank(prototypes="some")
