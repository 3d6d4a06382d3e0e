# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Reading of image files, compared with NumPy, OpenCV and Anomalib."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from anomalib.data.utils import read_image as read_with_anomalib
from PIL import Image

from anomalib_softpatch.images.reading import (
    UnreadableImageError,
    displayed_size,
    find_largest_value,
    read_image,
    read_reduced,
    reason_against,
    reason_against_anomalib,
)

# Stored pixels as they are displayed, by EXIF orientation
DISPLAYED = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.swapaxes(np.rot90(pixels, 2), 0, 1),
    8: np.rot90,
}
WHOLE = ["gray.png", "palette.png", "deep.png", "image.jpg", "image.tif", "image.bmp", "image.webp"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for name in WHOLE:
        image = Image.fromarray(pixels)
        mode = {"gray.png": "L", "palette.png": "P"}.get(name)
        image = Image.fromarray(pixels[..., 0].astype(np.uint16)) if name == "deep.png" else image.convert(mode)
        image.save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [1.0, 0.98, 0.5, 0.02])
def test_agrees_with_what_anomalib_can_read(folder: Path, name: str, share: float) -> None:
    """Complete files, and files without their end."""
    content = (folder / name).read_bytes()
    path = folder / f"cut {name}"
    path.write_bytes(content[: round(share * len(content))])
    try:
        read_with_anomalib(path)
    except Exception:
        assert reason_against(path)
    else:
        assert reason_against(path) == ""
    assert bool(reason_against(path)) == (share < 1)


def test_wrong_checksum_does_not_matter_if_the_pixels_can_be_read(folder: Path) -> None:
    content = bytearray((folder / "gray.png").read_bytes())
    end = content.index(b"IEND") - 4
    content[end - 1] ^= 255  # the last byte of the checksum of the pixels' chunk
    (folder / "gray.png").write_bytes(content)
    read_with_anomalib(folder / "gray.png")
    assert reason_against(folder / "gray.png") == ""


def test_files_that_are_not_images(folder: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    assert reason_against(folder / "empty.png") == "empty file"
    assert reason_against(folder / "text.png") == "not an image, or in an unknown format"
    assert reason_against(folder / "dead.png") == "not a file, or a broken link"


def save_with_orientation(pixels: np.ndarray, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("orientation", DISPLAYED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_images_are_read_as_they_are_displayed(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    path = save_with_orientation(stored, tmp_path / f"image.{suffix}", orientation)
    image, remark = read_image(path)
    if suffix == "jpg":
        with Image.open(path) as opened:
            stored = np.asarray(opened)
    expected = DISPLAYED[orientation](stored)
    assert np.array_equal((image * 255).round().transpose(1, 2, 0), expected)
    assert remark == ""
    if suffix in {"png", "jpg"}:
        assert np.abs(cv2.imread(str(path))[..., ::-1].astype(int) - expected).mean() < 2
    with Image.open(path) as opened:
        assert displayed_size(opened) == expected.shape[1::-1]
    small, size = read_reduced(path, side=1000)
    assert size == expected.shape[1::-1]
    assert small.width > small.height if size[0] > size[1] else small.height > small.width
    misread = not np.array_equal(read_with_anomalib(path, as_tensor=True).numpy(), image)
    assert misread == bool(reason_against_anomalib(path))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_deep_images_are_rotated_too(tmp_path: Path, orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (16, 24), dtype=np.uint16)
    image, _ = read_image(save_with_orientation(stored, tmp_path / "image.png", orientation), 4095)
    expected = DISPLAYED[orientation](stored) / 4095
    np.testing.assert_allclose(image, np.stack([expected] * 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("largest", "white"),
    [(200, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4096, 16383), (16384, 65535), (65535, 65535)],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_white_for_a_set(tmp_path: Path, largest: int, white: int, suffix: str) -> None:
    """White is the largest value of 8, 10, 12, 14 or 16 bits that fits all images, not an image's largest value."""
    pixels = np.random.default_rng(0).integers(0, largest, (3, 16, 24), dtype=np.uint16)
    pixels[1] //= 10
    pixels[2, 0, 0] = largest
    paths = [tmp_path / f"{index}.{suffix}" for index in range(3)]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(one).save(path)
    Image.new("L", (24, 16)).save(tmp_path / "ordinary.png")
    assert find_largest_value([*paths, tmp_path / "ordinary.png", tmp_path / "absent.png"]) == (white, 3)
    for path, one in zip(paths, pixels, strict=True):
        image, remark = read_image(path, white)
        np.testing.assert_allclose(image, np.stack([one / white] * 3), rtol=1e-6)
        assert image.dtype == np.float32
        assert remark == ""
        small, _ = read_reduced(path, 24, white)
        assert np.abs(np.asarray(small).astype(float) - 255 * image.transpose(1, 2, 0)).max() <= 0.51


def test_sixteen_bits_of_which_eight_are_used(tmp_path: Path) -> None:
    """They are read exactly as an image of 8 bits, also by Anomalib."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    for name, values in (("ordinary.png", pixels), ("deep.png", pixels.astype(np.uint16))):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name)[0], read_with_anomalib(tmp_path / name, as_tensor=True))
        assert reason_against_anomalib(tmp_path / name) == ""
    assert np.array_equal(read_image(tmp_path / "deep.png")[0], read_image(tmp_path / "ordinary.png")[0])
    assert "has values up to 255" in reason_against_anomalib(tmp_path / "deep.png", 4095)  # read_image makes it darker


def test_floating_point_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((16, 24), dtype=np.float32)
    Image.fromarray(pixels).save(tmp_path / "image.tif")
    assert np.array_equal(read_image(tmp_path / "image.tif")[0], np.stack([pixels] * 3))
    assert find_largest_value([tmp_path / "image.tif"]) == (255, 0)
    assert "Anomalib clips values at 255" in reason_against_anomalib(tmp_path / "image.tif")


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (
            np.full((16, 24), 4096, dtype=np.uint16),
            "values from 4096 to 4096; whole numbers must be from 0 to 4095, 12",
        ),
        (
            np.full((16, 24), 70_000, dtype=np.int32),
            "from 70000 to 70000; whole numbers must be from 0 to 4095, 12 bits",
        ),
        (np.full((16, 24), -1, dtype=np.int32), "from -1 to -1; whole numbers"),
        (np.full((16, 24), 200, dtype=np.float32), r"from 200 to 200; floating-point values must be in \[0, 1\]"),
        (np.full((16, 24), -0.1, dtype=np.float32), "from -0.1 to -0.1; floating-point"),
        (np.full((16, 24), np.nan, dtype=np.float32), "from nan to nan; floating-point"),
    ],
)
def test_values_of_unknown_meaning_are_refused(tmp_path: Path, pixels: np.ndarray, reason: str) -> None:
    tifffile.imwrite(tmp_path / "image.tif", pixels)
    with pytest.raises(UnreadableImageError, match=reason):
        read_image(tmp_path / "image.tif", 4095)
