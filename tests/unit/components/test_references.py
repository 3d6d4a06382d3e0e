# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Which patches are compared with which."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_softpatch.components import References, nearest_patches
from anomalib_softpatch.components.discriminators import lof


@pytest.fixture
def features():
    return 100 + torch.randn(40, 4, 5, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("neighborhood", [1, 2, 9, "image"])
def test_nearest_patches_of_a_neighborhood(features, neighborhood):
    """Brute force in float64: windows are shifted inward at the border, and an image is never compared with itself."""
    images, height, width, channels = features.shape
    patches = height * width
    distances, indices = nearest_patches(features, References(neighborhood), k=3)
    radius = 99 if neighborhood == "image" else neighborhood

    def window(place, length):
        size = min(2 * radius + 1, length)
        start = min(max(place - radius, 0), length - size)
        return range(start, start + size)

    flat = features.double().numpy().reshape(-1, channels)
    for patch in range(0, images * patches, 37):
        image, position = divmod(patch, patches)
        row, column = divmod(position, width)
        allowed = [
            other * patches + y * width + x
            for other in range(images)
            if other != image
            for y in window(row, height)
            for x in window(column, width)
        ]
        expected = np.linalg.norm(flat[allowed] - flat[patch], axis=1)
        order = np.argsort(expected)[:3]
        np.testing.assert_allclose(distances[patch], expected[order], rtol=1e-5)
        assert indices[patch].tolist() == np.array(allowed)[order].tolist()


def test_reference_subset(features):
    """Beyond the limit, a seeded subset of the references is used, and defects still stand out."""
    features[3] += 10
    references = References(max_references=20)
    scores = lof(features, references, 6)
    assert torch.equal(scores, lof(features, references, 6))
    assert not torch.equal(scores, lof(features, References(max_references=20, seed=1), 6))
    assert scores.mean(dim=(1, 2)).argmax() == 3


@settings(deadline=None)
@given(
    images=st.integers(1, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    neighborhood=st.sampled_from([0, 1, 2, "image"]),
    max_references=st.integers(1, 60),
    block_size=st.sampled_from([1, 50, 2**24]),
)
def test_blocks(images, height, width, neighborhood, max_references, block_size):
    """Each patch is scored once, and compared with as many patches of its window as the counts say."""
    references = References(neighborhood, max_references, block_size=block_size)
    compared_with = {}
    for scored, compared in references.blocks(torch.empty(images, height, width, 3), cost=2):
        for queries, others in zip(scored.tolist(), compared.tolist(), strict=True):
            assert len(set(others)) == len(others)
            for patch in queries:
                assert patch not in compared_with
                compared_with[patch] = others
    assert sorted(compared_with) == list(range(images * height * width))
    assert {len(others) for others in compared_with.values()} == {references.count(images, (height, width))}
    patches = height * width
    of_other_images = []
    for patch, others in compared_with.items():
        of_other_images.append(sum(other // patches != patch // patches for other in others))
        (row, column), places = divmod(patch % patches, width), [divmod(other % patches, width) for other in others]
        if neighborhood != "image":
            # A window that is shifted inward at the border reaches farther on the other side
            assert all(abs(y - row) <= 2 * neighborhood and abs(x - column) <= 2 * neighborhood for y, x in places)
    assert min(of_other_images) == references.available(images, (height, width))
