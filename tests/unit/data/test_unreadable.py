# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from anomalib.data import Folder
from anomalib.data.utils import read_image
from PIL import Image

from anomalib_softpatch.data.unreadable import MOST_LISTED, leave_out, listed, reason_against, unreadable_images

WHOLE = ["grey.png", "palette.png", "deep.png", "image.jpg", "image.tif", "image.bmp", "image.webp"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for name in WHOLE:
        image = Image.fromarray(pixels)
        mode = {"grey.png": "L", "palette.png": "P"}.get(name)
        image = Image.fromarray(pixels[..., 0].astype(np.uint16)) if name == "deep.png" else image.convert(mode)
        image.save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [1.0, 0.98, 0.5, 0.02])
def test_agrees_with_what_anomalib_can_read(folder: Path, name: str, share: float) -> None:
    """Whole files, and files of which the end is missing."""
    content = (folder / name).read_bytes()
    path = folder / f"cut {name}"
    path.write_bytes(content[: round(share * len(content))])
    try:
        read_image(path)
    except Exception:
        assert reason_against(path)
    else:
        assert reason_against(path) == ""
    assert bool(reason_against(path)) == (share < 1)


def test_wrong_checksum_is_no_reason_where_the_pixels_can_be_read(folder: Path) -> None:
    content = bytearray((folder / "grey.png").read_bytes())
    end = content.index(b"IEND") - 4
    content[end - 1] ^= 255  # the last byte of the checksum of the pixels' chunk
    (folder / "grey.png").write_bytes(content)
    read_image(folder / "grey.png")
    assert reason_against(folder / "grey.png") == ""


def test_files_that_are_no_images(folder: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    assert reason_against(folder / "empty.png") == "empty file"
    assert reason_against(folder / "text.png") == "not an image, or of an unknown format"
    assert reason_against(folder / "dead.png") == "not a file, or a link that leads nowhere"


def test_images_are_left_out_of_all_sets(mvtec_root: Path, tmp_path: Path) -> None:
    for kind, source in (("good", "train/good"), ("bad", "test/broken_small")):
        (tmp_path / kind).mkdir()
        for path in (mvtec_root / "bottle" / source).iterdir():
            (tmp_path / kind / path.name).write_bytes(path.read_bytes())
    datamodule = Folder(name="set", root=tmp_path, normal_dir="good", abnormal_dir="bad", val_split_mode="same_as_test")
    datamodule.setup()
    sets = [datamodule.train_data, datamodule.test_data, datamodule.val_data]
    broken = [data.samples["image_path"].iloc[0] for data in sets]
    counts = [len(data) for data in sets]
    assert unreadable_images(datamodule) == {}
    for path in broken:
        Path(path).write_bytes(b"broken")
    assert unreadable_images(datamodule).keys() == set(broken)
    leave_out(datamodule, broken)
    assert unreadable_images(datamodule) == {}
    assert [len(data) for data in sets] == [count - 1 for count in counts]


def test_list_is_short() -> None:
    reasons = {f"{index}.png": "empty file" for index in range(MOST_LISTED + 5)}
    lines = listed(reasons).splitlines()
    assert len(lines) == MOST_LISTED + 1
    assert lines[0] == "  0.png: empty file"
    assert lines[-1] == "  and 5 more"
