# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The size that a folder's images are resized to, and the remarks on it."""

from pathlib import Path

import pytest
from PIL import Image

from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.image_size import choose_size, typical_image

PIXELS = 256 * 256


def write(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    """Write images of a height and width each."""
    paths = []
    for number, (height, width) in enumerate(sizes):
        paths.append(folder / f"{number}.png")
        Image.new("L", (width, height)).save(paths[-1])
    return paths


@pytest.mark.parametrize("size", [(256, 256), (64, 64), (1024, 1024), (700, 700), (512, 500)])
def test_squares_are_256_x_256(size, tmp_path):
    typical = typical_image(write(tmp_path, size, size))
    assert typical.model_size == (256, 256)
    assert typical.others == 0


@pytest.mark.parametrize("size", [(1000, 1500), (1500, 1000), (500, 1260), (1260, 500), (480, 640), (100, 1900)])
def test_the_aspect_ratio_is_kept_with_the_same_number_of_pixels(size, tmp_path):
    """Within half a step of 16 pixels on each side."""
    height, width = typical_image(write(tmp_path, size)).model_size
    assert height % 16 == width % 16 == 0
    assert height * width == pytest.approx(PIXELS, rel=0.15)
    exact = (PIXELS * size[0] / size[1]) ** 0.5
    assert abs(height - exact) <= 8
    assert abs(width - PIXELS / exact) <= 8


def test_examples_of_the_documents(tmp_path):
    (tmp_path / "a").mkdir()
    assert typical_image(write(tmp_path, (1000, 1500))).model_size == (208, 320)
    assert typical_image(write(tmp_path / "a", (500, 1260))).model_size == (160, 400)


def test_the_median_of_mixed_images_counts(tmp_path):
    """A few images of another shape or a broken file do not change the result. Images of another shape are counted."""
    paths = write(tmp_path, *[(300, 600)] * 6, (400, 800), (600, 600), (900, 300))
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:10])
    typical = typical_image([*paths, tmp_path / "broken.png", tmp_path / "missing.png"])
    assert (typical.height, typical.width) == (300, 600)
    assert (typical.images, typical.others) == (9, 2)
    (remark,) = typical.remarks((176, 368), lambda: (22, 46), tiled=False)
    assert remark == "Images with another aspect ratio than 300 x 600 (height x width) are distorted: 2 of 9."


def test_slightly_different_sizes_are_one_shape(tmp_path):
    """Hand-cut images with different heights, as in KolektorSDD."""
    typical = typical_image(write(tmp_path, (1240, 500), (1250, 500), (1260, 500), (1270, 500)))
    assert typical.model_size == (400, 160)
    assert typical.others == 0


def test_no_readable_image_gives_the_usual_size(tmp_path):
    assert typical_image([tmp_path / "none.png"]).model_size == (256, 256)


def test_a_given_size_counts_and_tiled_images_keep_their_size(tmp_path):
    typical = typical_image(write(tmp_path, (1000, 1500)))

    def nearest(height: int, width: int) -> tuple[int, int]:
        return height // 14 * 14, width // 14 * 14

    assert choose_size(typical, (500, 1260), True, nearest) == (500, 1260)
    assert choose_size(typical, None, True, nearest) == (1000, 1500)
    assert choose_size(typical, None, False, nearest) == (196, 308)


def test_remarks_name_what_vanishes_in_large_images(tmp_path):
    """1000 x 1500 pixels on 26 x 40 patches: a patch is 38 x 38 of them."""
    typical = typical_image(write(tmp_path, (1000, 1500)))
    (line,) = typical.remarks((208, 320), lambda: (26, 40), tiled=False)
    assert "resized to 208 x 320, 4.8 and 4.7 times smaller: a defect below about 38 x 38 of their pixels" in line
    assert line.endswith("If yours may be that small, use --image_size 416 640 or --tile 512 --stride 384.")
    assert "\n" not in line
    (line,) = typical.remarks((400, 600), lambda: (50, 75), tiled=True)
    assert line.endswith("--image_size 800 1200.")
    assert typical.remarks((1000, 1500), lambda: (125, 188), tiled=True) == []
    assert typical.remarks((512, 768), lambda: (64, 96), tiled=False) == []


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), (256, (256, 256)), ([500, 1260], (500, 1260)), ([64], (64, 64))]
)
def test_one_number_or_two(value, expected):
    assert Extraction(image_size=value).size == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "image_size=0 must be a whole number of 32 or more"),
        ([256, 16], "image_size=16 must be a whole number of 32 or more"),
        ([256, 256, 3], r"image_size=\[256, 256, 3\] must be one number of pixels, or two"),
        ("512x768", "image_size=512x768 must be one number of pixels, or two: height and width"),
        ([], r"image_size=\[\] must be one number"),
    ],
)
def test_other_sizes_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Extraction(image_size=value)


def test_tiles():
    assert Extraction().tiles is None
    assert Extraction(tile=512, stride=384).tiles == {"tile_size": (512, 512), "stride": (384, 384)}
    assert Extraction(tile=[256, 512]).tiles == {"tile_size": (256, 512), "stride": (256, 512)}
    with pytest.raises(ValueError, match="stride=384 needs tiles"):
        Extraction(stride=384)
    with pytest.raises(ValueError, match="stride=600 x 600 leaves gaps between tiles of 512 x 512"):
        Extraction(tile=512, stride=600)
    with pytest.raises(ValueError, match="tile=16 must be a whole number of 32"):
        Extraction(tile=16)
