# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Groups of duplicates, from features whose copies are known."""

from itertools import product

import numpy as np
import pytest
import torch

from anomalib_softpatch.components import duplicates
from anomalib_softpatch.components.duplicates import RADIUS, duplicate_groups, near_pairs, representatives


def features(images: int = 60, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Images that share a common pattern, like aligned ones, and differ by noise in every patch."""
    generator = torch.Generator().manual_seed(seed)
    common = 5 * torch.randn(1, 12, 12, 8, generator=generator)
    return common + spread * torch.randn(images, 12, 12, 8, generator=generator)


def partition(groups: torch.Tensor) -> set[frozenset[int]]:
    """Groups of more than one image, as sets of their indices."""
    sets = [frozenset((groups == group).nonzero().flatten().tolist()) for group in groups.unique()]
    return {group for group in sets if len(group) > 1}


def near_groups(images: torch.Tensor) -> torch.Tensor:
    """Groups of images without exact copies."""
    return duplicate_groups(range(len(images)), images)


def test_exact_copies_are_found_by_their_hash() -> None:
    groups = duplicate_groups(["a", "b", "a", "c", "b", "a"], features(6))
    assert groups.tolist() == [0, 1, 0, 2, 1, 0]
    assert representatives(groups).tolist() == [0, 1, 3]


def test_near_copies_are_grouped_and_aligned_images_are_not() -> None:
    originals = features()
    assert partition(near_groups(originals)) == set()
    generator = torch.Generator().manual_seed(1)
    copies = originals[[3, 17, 17]] + 0.3 * torch.randn(3, 12, 12, 8, generator=generator)
    groups = near_groups(torch.cat((originals, copies)))
    assert partition(groups) == {frozenset({3, 60}), frozenset({17, 61, 62})}


def test_all_images_copied_once() -> None:
    originals = features(40)
    copies = originals + 0.3 * torch.randn(originals.shape, generator=torch.Generator().manual_seed(1))
    groups = near_groups(torch.cat((originals, copies)))
    assert partition(groups) == {frozenset({index, index + 40}) for index in range(40)}


def test_two_similar_images_unlike_all_others_count_once() -> None:
    """They are by far nearest to each other, like copies of an unusual image: the two cases look the same."""
    originals = features(40)
    generator = torch.Generator().manual_seed(2)
    odd = 20 + 3 * torch.randn(2, 12, 12, 8, generator=generator)
    assert partition(near_groups(torch.cat((originals, odd)))) == {frozenset({40, 41})}


@pytest.mark.parametrize(("ways", "largest_share"), [(2, 0.05), (3, 0.05), (8, 0.05)])
def test_few_ways_to_differ(ways: int, largest_share: float) -> None:
    """Images that differ in only two ways are near each other by chance, but few pairs are grouped."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(ways, 12, 12, 8, generator=generator)
    images = torch.einsum("nw,whij->nhij", torch.randn(100, ways, generator=generator), basis)
    assert len(near_pairs(images)) <= largest_share * 100 * 99 / 2


def test_a_filled_border_does_not_make_images_alike() -> None:
    originals = features(40).repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)  # 36 x 36 patches
    originals[:10, :2] = originals[:10, -2:] = -50
    assert partition(near_groups(originals)) == set()


def test_hashes_and_features_together() -> None:
    originals = features(40)
    near = originals[7:8] + 0.2
    images = torch.cat((originals[:1].repeat(15, 1, 1, 1), originals, near))
    hashes = [*["same"] * 15, "same", *range(1, 40), "near"]
    groups = duplicate_groups(hashes, images)
    assert partition(groups) == {frozenset(range(16)), frozenset({15 + 7, 55})}
    assert groups.unique().tolist() == list(range(39 + 1))


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.cat((features(50), features(50)[:5] + 0.1))
    whole = near_groups(images)
    monkeypatch.setattr(duplicates, "IMAGES_AT_A_TIME", 7)
    assert torch.equal(near_groups(images), whole)


def test_among_few_images_only_exact_copies_count() -> None:
    images = features(5).repeat(2, 1, 1, 1)
    assert partition(near_groups(images)) == set()
    assert duplicate_groups([0, 1, 2, 3, 4] * 2, images).tolist() == [0, 1, 2, 3, 4] * 2
    assert duplicate_groups(["one"], images[:1]).tolist() == [0]


@pytest.mark.parametrize("candidates", [59, 8])
def test_many_images_are_compared_with_some(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of likely pairs finds the same as that of all pairs, and so does a sample of the images."""
    originals = features(60)
    generator = torch.Generator().manual_seed(1)
    copies = originals[[3, 17, 17]] + 0.3 * torch.randn(3, 12, 12, 8, generator=generator)
    images = torch.cat((originals, copies))
    expected = near_pairs(images)
    assert len(expected) == 4
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 40)
    monkeypatch.setattr(duplicates, "FEWEST_COMPARED", 40)
    monkeypatch.setattr(duplicates, "CANDIDATES", candidates)
    assert torch.equal(near_pairs(images), expected)
    assert len(near_pairs(originals)) == 0


def test_a_sample_of_the_images_makes_no_more_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest of all images are nearer than the nearest of some, but images near by chance are still no copies."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(3, 12, 12, 8, generator=generator)
    images = torch.einsum("nw,whij->nhij", torch.randn(600, 3, generator=generator), basis)
    pairs = len(near_pairs(images))
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 30)
    monkeypatch.setattr(duplicates, "FEWEST_COMPARED", 30)
    assert 0 < len(near_pairs(images)) <= pairs


def test_pairs_equal_brute_force() -> None:
    """Copies differ more and more from their originals: only those that are near enough are found."""
    originals = features(40, seed=3)
    generator = torch.Generator().manual_seed(4)
    differences = torch.linspace(0.2, 1.2, 40)[:, None, None, None] * torch.randn(originals.shape, generator=generator)
    images = torch.cat((originals, originals + differences)).double().numpy()
    count, height, _, channels = images.shape
    nearer = np.zeros((3, count, count))
    inside = range(RADIUS, height - RADIUS)  # where all patches have the same number of others around them
    for row, column in product(inside, inside):
        others = images[:, row - RADIUS : row + RADIUS + 1, column - RADIUS : column + RADIUS + 1]
        others = others.reshape(1, count, -1, channels)
        distances = np.linalg.norm(images[:, row, column][:, None, None] - others, axis=3).min(axis=2)
        np.fill_diagonal(distances, np.inf)
        for place, k in enumerate((8, 16, 32)):
            limits = np.sort(distances, axis=1)[:, k - 1] * (k / 4) ** (-1 / 3)
            nearer[place] += distances < limits[:, None]
    most = (nearer > len(inside) ** 2 / 2).any(axis=0)
    expected = np.argwhere(np.triu(most & most.T, 1)).tolist()
    assert 10 < len(expected) < 38  # some of the copies
    assert near_pairs(torch.from_numpy(images).float()).tolist() == expected
