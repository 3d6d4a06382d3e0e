# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Files of a folder by name and content."""

import hashlib
from pathlib import Path

from anomalib_softpatch.images.inventory import exact_copies, inventory


def test_inventory_is_of_content(tmp_path: Path) -> None:
    contents = {"b/x.png": b"1", "a.png": b"1", "b/empty.png": b"", "c.png": b"2" * 3_000_000}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    paths = list(tmp_path.rglob("*.png"))
    found = inventory(tmp_path, paths)
    assert list(found) == ["a.png", "b/empty.png", "b/x.png", "c.png", "link.png"]
    assert {name: value for name, value in found.items() if name in contents} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    assert found["link.png"] == ""
    assert exact_copies(found) == [["a.png", "b/x.png"]]
    assert exact_copies({"a": "", "b": ""}) == []  # unreadable files are not copies
