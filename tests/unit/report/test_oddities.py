# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Oddities of images that were made odd in a known way."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_softpatch.report.oddities import ImageStatistics, find_oddities, image_statistics


def statistics(image: Image.Image) -> ImageStatistics:
    return image_statistics(to_dtype(to_image(image.convert("RGB")), scale=True))


def ordinary(count: int = 20, low: int = 60, high: int = 200) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(low, high, (48, 64, 3), dtype=np.uint8)) for _ in range(count)]


CHANGES = {
    "dark": lambda image: image.point(lambda value: value // 4),
    "light": lambda image: image.point(lambda value: 255 - (255 - value) // 8),
    "blurry": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "low information": lambda image: image.point(lambda value: 100 if value < 195 else 140),
    "gray among color": lambda image: image.convert("L"),
    "odd size": lambda image: image.resize((65, 49)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_image_is_named_and_the_others_are_not(name: str) -> None:
    images = ordinary()
    images[7] = CHANGES[name](images[7])
    found = find_oddities([statistics(image) for image in images])
    assert name in found[7]
    assert not any(names for index, names in enumerate(found) if index != 7)


def test_rotated_image_has_an_odd_aspect() -> None:
    images = ordinary()
    images[7] = images[7].transpose(Image.Transpose.ROTATE_90)
    assert find_oddities([statistics(image) for image in images])[7] == ["odd size", "odd aspect"]


@pytest.mark.parametrize("change", [*CHANGES.values()])
def test_what_all_images_share_is_not_odd(change: object) -> None:
    assert not any(find_oddities([statistics(change(image)) for image in ordinary()]))


def test_black_and_white_images_are_odd_in_any_set() -> None:
    for color, name in (("black", "dark"), ("white", "light")):
        found = find_oddities([statistics(Image.new("RGB", (64, 48), color))] * 5)
        assert found == [[name, "low information"]] * 5


def test_many_sizes_are_usual() -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48, 48 + side), dtype=np.uint8)) for side in range(20)]
    assert not any("odd size" in names for names in find_oddities([statistics(image) for image in images]))


def test_large_and_tiny_images() -> None:
    large = statistics(ordinary(1)[0].resize((1000, 600)))
    assert (large.width, large.height) == (1000, 600)
    assert statistics(Image.new("RGB", (8, 8))).sharpness == 0
