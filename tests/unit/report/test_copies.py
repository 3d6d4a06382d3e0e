# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Copies between two sets, with synthetic features whose copies are known."""

import torch

from anomalib_softpatch.report.copies import Copy, OtherFolder, find_copies


def features(images: int, seed: int) -> torch.Tensor:
    """Images with common content, like aligned photographs, that differ by noise in every patch."""
    common = 5 * torch.randn(1, 12, 12, 8, generator=torch.Generator().manual_seed(0))
    return common + torch.randn(images, 12, 12, 8, generator=torch.Generator().manual_seed(seed))


def test_exact_and_near_copies_are_distinguished_from_new_images() -> None:
    own, other = features(40, seed=1), features(30, seed=2)
    other[3] = own[7] + 0.1 * features(1, seed=3)[0]  # near
    other[4] = own[8]  # equal
    own[9] = own[8]  # a copy within the set: the first one is named
    own[6] = own[7] + 0.5 * features(1, seed=5)[0]  # less similar
    other[5] = other[3]  # equal to an image of the other set
    other[6] = other[7] + 0.1 * features(1, seed=4)[0]  # a near copy within the other set does not count
    hashes = [f"own {index}" for index in range(40)]
    other_hashes = [f"other {index}" for index in range(30)]
    hashes[9] = other_hashes[4] = hashes[8]
    other_hashes[5] = other_hashes[3]
    assert find_copies(hashes, own, other_hashes, other) == [(3, 7, False), (4, 8, True), (5, 7, False)]


def test_all_or_none_of_the_other_images_are_copies() -> None:
    own, other = features(40, seed=1), features(40, seed=2)
    assert find_copies(range(40), own, range(40, 80), other) == []
    near = own + 0.05 * other
    assert find_copies(range(40), own, range(40, 80), near) == [(index, index, False) for index in range(40)]
    assert find_copies(range(40), own, range(40), own) == [(index, index, True) for index in range(40)]


def test_few_images_can_only_have_exact_copies() -> None:
    own = features(6, seed=1)
    assert find_copies("abcdef", own, "fgh", own[:3]) == [(0, 5, True)]
    found = OtherFolder("other", 3, 0, near=False, copies=[Copy("x", "f", exact=True)])
    assert found.line == (
        "1 of 3 images in other are copies of images in this set (1 exact, 0 near). Remove them from one of the two "
        "sets; otherwise a test overrates the model. The search for near copies needs at least 20 images."
    )
