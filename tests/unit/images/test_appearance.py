# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How images look as a whole, and whether other images differ from them."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_softpatch.images.appearance import (
    FEWEST,
    Appearance,
    UsualAppearance,
    appearance,
    appearances_from_plain,
    appearances_to_plain,
    mean_colors,
)
from anomalib_softpatch.images.reading import image_size, read_image


def look_at(path: Path, largest_value: int = 255) -> Appearance:
    return appearance(path, mean_colors(read_image(path, largest_value)[0]))


def some(number: int = 20, **changes: object) -> list[Appearance]:
    usual = {"width": 1280, "height": 960, "kind": "color, 8 bits"} | changes
    return [Appearance(brightness=105 + 14 * each / (number - 1), **usual) for each in range(number)]


@pytest.mark.parametrize(("mode", "kind"), [("L", "gray, 8 bits"), ("RGB", "color, 8 bits"), ("I;16", "gray, 16 bits")])
def test_appearance_agrees_with_file_and_pixels(mode: str, kind: str, tmp_path: Path) -> None:
    """An image of 32 x 48 pixels has no incomplete cells."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    pixels[..., 0] //= 4
    if mode == "RGB":
        Image.fromarray(pixels).save(tmp_path / "image.png")
    else:
        Image.fromarray(pixels[..., 1].astype("u2" if mode == "I;16" else "u1") * (16 if mode == "I;16" else 1)).save(
            tmp_path / "image.png"
        )
    seen = look_at(tmp_path / "image.png", 4095 if mode == "I;16" else 255)
    assert (seen.width, seen.height, seen.kind) == (48, 32, kind)
    expected = pixels.mean() if mode == "RGB" else pixels[..., 1].mean() * (16 * 255 / 4095 if mode == "I;16" else 1)
    assert seen.brightness == pytest.approx(expected, rel=1e-5)


def test_a_gray_image_in_a_color_file_is_gray(tmp_path: Path) -> None:
    """The model sees no difference."""
    Image.new("RGB", (20, 30), (90, 91, 90)).save(tmp_path / "image.jpg")
    assert look_at(tmp_path / "image.jpg").kind == "gray, 8 bits"


def test_an_image_is_as_wide_as_it_is_displayed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "rotated.jpg", exif=exif)
    seen = look_at(tmp_path / "rotated.jpg")
    assert (seen.width, seen.height) == (20, 40)


@pytest.mark.parametrize("shape", [(9, 8), (37, 1000), (256, 256)])
def test_the_size_hardly_changes_the_colors(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    values = generator.random((3, *shape), dtype=np.float32)
    assert mean_colors(values).mean() == pytest.approx(values.mean(), abs=0.02)
    assert mean_colors(values).shape == (3, min(16, shape[0]), min(16, shape[1]))


def test_similar_images_are_not_reported() -> None:
    usual = UsualAppearance.of(some())
    assert usual is not None
    assert usual.remarks(some()) == {}
    assert usual.remarks([*some(15), *some(5, width=640, kind="gray, 8 bits")]) == {}  # a quarter of them differ


def test_differences_are_reported_with_numbers() -> None:
    usual = UsualAppearance.of(some())
    assert usual is not None
    other = [Appearance(640, 480, "gray, 16 bits", 61.2)] * 12
    lines = usual.remarks(other)
    expected = "640 x 480 pixels (width x height) instead of 1280 x 960 (98 % of the training images are 1280"
    assert expected in lines["size"]
    assert "100 % are gray, 16 bits. 0 % of the training images are (100 % are color, 8 bits)." in lines["kind"]
    assert "darker than the training images: mean brightness 61 of 255 instead of 112 (98 %" in lines["brightness"]
    assert "lie between 105 and 119" in lines["brightness"]
    assert "brighter" in usual.remarks([Appearance(1280, 960, "color, 8 bits", 130.0)] * 12)["brightness"]


def test_small_differences_and_few_images_are_not_reported() -> None:
    same = UsualAppearance.of([Appearance(1000, 1000, "gray, 8 bits", 100.0)] * 20)
    assert same is not None
    assert same.remarks([Appearance(1010, 1000, "gray, 8 bits", 104.0)] * 20) == {}
    assert set(same.remarks([Appearance(1030, 1000, "gray, 8 bits", 106.0)] * 20)) == {"size", "brightness"}
    assert same.remarks([Appearance(500, 500, "gray, 8 bits", 10.0)] * (FEWEST - 1)) == {}
    assert UsualAppearance.of(some(FEWEST - 1)) is None


@pytest.mark.parametrize("count", [10, 40])
def test_images_of_the_same_distribution_are_seldom_reported(count: int) -> None:
    """Ten training images and ten others are reported in a few of a hundred cases."""
    generator = np.random.default_rng(count)
    reported = 0
    for _ in range(300):
        values = generator.normal(120, 30, 2 * count)
        images = [Appearance(9, 9, "gray, 8 bits", float(value)) for value in values]
        usual = UsualAppearance.of(images[:count])
        assert usual is not None
        reported += bool(usual.remarks(images[count:]))
    assert reported <= 0.06 * 300


def test_plain_data_keeps_everything() -> None:
    usual = UsualAppearance.of(some())
    assert usual is not None
    assert UsualAppearance.from_plain(json.loads(json.dumps(asdict(usual)))) == usual
    assert UsualAppearance.from_plain(None) is None
    assert appearances_from_plain(json.loads(json.dumps(appearances_to_plain(some())))) == tuple(some())


@pytest.mark.parametrize("name", ["kolektor", "mtile", "visa_macaroni1"])
def test_real_test_images_do_not_differ_from_real_training_images(name: str, kolektor: Path) -> None:
    train, good = (sorted((kolektor / name / part / "good").iterdir())[::3] for part in ("train", "test"))
    usual = UsualAppearance.of([look_at(path) for path in train])
    assert usual is not None
    assert usual.remarks([look_at(path) for path in good]) == {}


def test_the_header_of_a_large_image_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns of images that need much memory to decode, but the image is not decoded here."""
    Image.new("RGB", (30, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(tmp_path / "large.png") == (30, 20)
        assert appearance(tmp_path / "large.png", np.zeros((3, 1, 1))).width == 30
