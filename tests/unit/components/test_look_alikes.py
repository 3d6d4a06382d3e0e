# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Nearest patches of other images against brute force, and groups of images that are known to show the same."""

import numpy as np
import pytest
import torch

from anomalib_softpatch.components import look_alikes
from anomalib_softpatch.components.look_alikes import look_alike_groups, nearest_in_images

IMAGES, HEIGHT, WIDTH, CHANNELS = 40, 6, 7, 24


def make_features(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pattern = 2 * torch.randn(HEIGHT, WIDTH, CHANNELS, generator=generator)
    return pattern + 0.4 * torch.randn(IMAGES, HEIGHT, WIDTH, CHANNELS, generator=generator)


@pytest.mark.parametrize("neighborhood", [0, 1, "image"])
@pytest.mark.parametrize("block", [1, 2**24])
def test_nearest_patches_are_those_of_brute_force(
    neighborhood: int | str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_alikes, "BLOCK", block)
    features = make_features()
    images, places = [3, 17, 3], [0, 20, 41]
    found = nearest_in_images(features, images, places, neighborhood)
    values = features.double().numpy().reshape(IMAGES, HEIGHT * WIDTH, CHANNELS)
    for number, (image, place) in enumerate(zip(images, places, strict=True)):
        distances = np.linalg.norm(values - values[image, place], axis=2)
        np.testing.assert_allclose(
            np.delete(found.anywhere[number], image), np.delete(distances.min(axis=1), image), rtol=1e-4
        )
        away = [
            max(abs(place // WIDTH - other // WIDTH), abs(place % WIDTH - other % WIDTH))
            for other in range(HEIGHT * WIDTH)
        ]
        if neighborhood != "image":
            distances[:, np.array(away) > neighborhood] = np.inf
        distances[image] = np.inf
        nearest = found.nearest(number, 3)
        assert [each[0] for each in nearest] == distances.min(axis=1).argsort()[:3].tolist()
        for other, where, distance in nearest:
            assert where == distances[other].argmin()
            assert distance == pytest.approx(distances[other, where], rel=1e-4)


def groups_of(features: torch.Tensor, images: list[int], places: list[int]) -> list[list[int]]:
    found = nearest_in_images(features, images, places, 1)
    return [[images[place] for place in group] for group in look_alike_groups(found.anywhere, images)]


def test_images_with_the_same_odd_thing_are_a_group() -> None:
    """Wherever it is in the images; images with a unique odd thing are in no group."""
    features = make_features()
    generator = torch.Generator().manual_seed(5)
    kinds = 4 * torch.randn(2, CHANNELS, generator=generator)
    images, places = list(range(12)), torch.randperm(HEIGHT * WIDTH, generator=generator)[:12].tolist()
    for image, place in zip(images, places, strict=True):
        own = 4 * torch.randn(CHANNELS, generator=generator)
        odd = kinds[0] if image < 4 else kinds[1] if image < 7 else own
        features[image].flatten(0, 1)[place] = odd + 0.3 * torch.randn(CHANNELS, generator=generator)
    assert groups_of(features, images, places) == [[0, 1, 2, 3], [4, 5, 6]]


def test_images_of_one_kind_are_look_alikes_only_by_chance() -> None:
    """Few pairs are grouped among the most unusual fifth of images that differ only by noise."""
    pairs = 0
    for seed in range(20):
        features = make_features(seed)
        away = torch.linalg.vector_norm(features - features.mean(dim=0), dim=3).flatten(1)
        images = away.amax(dim=1).topk(8).indices.tolist()
        pairs += sum(len(group) - 1 for group in groups_of(features, images, away.argmax(dim=1)[images].tolist()))
    assert pairs <= 20 * 28 * 0.02


def test_a_chain_is_not_a_group() -> None:
    """The first and the last of three images are not alike, although the second is like both."""
    far, near = 5.0, 0.6
    anywhere = torch.full((3, 6), 1.0)
    anywhere[0, :3] = torch.tensor([torch.inf, near, far])
    anywhere[1, :3] = torch.tensor([near, torch.inf, near + 0.1])
    anywhere[2, :3] = torch.tensor([far, near + 0.1, torch.inf])
    assert look_alike_groups(anywhere, [0, 1, 2]) == [[0, 1]]


def test_likeness_is_mutual() -> None:
    anywhere = torch.tensor([[torch.inf, 0.5, 1.0, 2.0], [0.5, torch.inf, 0.4, 2.0]])
    assert look_alike_groups(anywhere, [0, 1]) == []
    assert look_alike_groups(anywhere[:, [0, 1, 3]], [0, 1]) == [[0, 1]]


def test_nothing_to_compare_gives_no_groups() -> None:
    assert look_alike_groups(torch.full((1, 4), 1.0), [0]) == []
    assert look_alike_groups(torch.empty(0, 4), []) == []
    assert look_alike_groups(torch.zeros(2, 2), [0, 1]) == []
