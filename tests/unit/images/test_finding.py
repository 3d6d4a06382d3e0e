# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Image files of a folder with links."""

from pathlib import Path

import pytest
from PIL import Image

from anomalib_softpatch.images.finding import LINKED_FOLDER, about_links, find_images, list_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images/a.png", "images/sub/b.png", "elsewhere/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(tmp_path / name)
    (tmp_path / "images" / "link.png").symlink_to("a.png")
    (tmp_path / "images" / "outside").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "images" / "sub" / "loop").symlink_to(tmp_path / "images", target_is_directory=True)
    return tmp_path / "images"


def test_links_to_folders_are_named(folder: Path) -> None:
    images, skipped = find_images(folder)
    assert images == [folder / "a.png", folder / "link.png", folder / "sub" / "b.png"]
    linked = [folder / "outside", folder / "sub" / "loop"]
    assert skipped == [(str(path), LINKED_FOLDER) for path in linked]
    assert list_files(folder).linked == linked
    assert about_links(skipped) == f"2 links to folders are not followed: {linked[0]} and 1 more.\n"
    assert about_links([]) == ""


def test_a_folder_of_links_has_no_images(folder: Path) -> None:
    for path in (folder / "a.png", folder / "link.png", folder / "sub" / "b.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"has no images .* 2 links to folders are not followed"):
        find_images(folder)


def test_a_link_to_a_folder_can_be_given_itself(folder: Path) -> None:
    images, _ = find_images(folder / "outside")
    assert images == [folder / "outside" / "c.png"]
