# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images that cannot be read."""

from pathlib import Path

from anomalib.data import Folder

from anomalib_softpatch.data.unreadable import MOST_LISTED, leave_out, listed, unreadable_images


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
