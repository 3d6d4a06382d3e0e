# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The features of all training images, in memory and on disk."""

import sys

import pytest
import torch

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore


@pytest.fixture
def features():
    return torch.randn(30, 6, 5, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_budget", [None, 0, 20_000])
def test_on_disk_nothing_changes(features, memory_budget, tmp_path):
    store = FeatureStore(memory_budget=memory_budget, folder=tmp_path)
    for batch in features.split(4):
        store.append(batch)
    assert (store._spill is not None) == (memory_budget is not None)
    assert store.shape == features.shape
    matrix = torch.randn(24, 3)
    torch.testing.assert_close(store.project(matrix), features @ matrix)
    indices = torch.randperm(900)[:50]
    assert torch.equal(store.rows(indices), features.reshape(-1, 24)[indices])
    expected, actual = (DenoisingMemoryBank().fit(source) for source in (features, store))
    assert torch.equal(actual.indices, expected.indices)
    store.clear()
    assert not list(tmp_path.iterdir())


def test_refuses_other_sizes(features):
    store = FeatureStore()
    store.append(features)
    with pytest.raises(ValueError, match="6 x 4 patches x 24 channels follow features of 6 x 5 x 24"):
        store.append(features[:, :, :4])


def test_in_half_precision(features):
    store = FeatureStore(dtype=torch.float16)
    store.append(features)
    torch.testing.assert_close(store.project(), features, rtol=1e-3, atol=1e-3)


def test_leaves_no_files_to_a_killed_process(features, tmp_path):
    """Mapped files no longer have names, where the system allows it."""
    store = FeatureStore(memory_budget=0, folder=tmp_path)
    store.append(features)
    if sys.platform != "win32":
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert torch.equal(store.project(), features)


def test_refuses_other_shapes(features):
    with pytest.raises(ValueError, match=r"shape \(images, height, width, channels\), got \(30, 30, 24\)"):
        FeatureStore().append(features.flatten(1, 2))


def test_images_are_numbered_by_their_keys():
    """Whatever the order of arrival; an image that comes twice counts twice."""
    store = FeatureStore()
    values = torch.arange(4.0).view(4, 1, 1, 1)
    store.append(values[:3], ["b", "c", "a"])
    store.append(values[3:], ["b"])
    assert store.keys == ("a", "b", "b", "c")
    assert store.project().flatten().tolist() == [2, 0, 3, 1]
    assert store.rows(torch.tensor([3, 0])).flatten().tolist() == [1, 2]
    batches = [(batch.flatten().tolist(), keys) for batch, keys in store.batches()]
    assert batches == [([0, 1, 2], ["b", "c", "a"]), ([3], ["b"])]
    with pytest.raises(ValueError, match="one for each of the 4 images, got 1"):
        store.append(values, ["d"])


def test_images_without_keys_are_numbered_as_they_come():
    """Also if some of them have keys."""
    store = FeatureStore()
    values = torch.arange(4.0).view(4, 1, 1, 1)
    store.append(values[:2], ["b", "a"])
    store.append(values[2:])
    assert store.keys == ()
    assert store.project().flatten().tolist() == [0, 1, 2, 3]
    assert [keys for _, keys in store.batches()] == [["b", "a"], None]


def test_forgets_everything(features, tmp_path):
    store = FeatureStore(memory_budget=3_000, folder=tmp_path)
    store.append(features[:1], ["a"])
    store.append(features[1:2], ["b"])
    assert store._spill is not None
    store.clear()
    assert store.shape == (0, 0, 0, 0)
    assert store.keys == ()
    assert store._spill is None
    assert not list(tmp_path.iterdir())
    store.append(features[:1])  # the budget is free again
    assert store._spill is None
