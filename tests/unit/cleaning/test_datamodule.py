# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The datamodule of unlabeled files."""

from pathlib import Path

from PIL import Image

from anomalib_softpatch.cleaning.datamodule import UnlabeledDataModule
from anomalib_softpatch.data.protocols import ReadsDeepImages


def test_all_files_train_and_none_is_held_back(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.png", "a\n.png", "c.png")]
    for path in paths:
        Image.new("RGB", (16, 16)).save(path)
    datamodule = UnlabeledDataModule(paths, batch_size=2)
    datamodule.setup("fit")
    batches = list(datamodule.train_dataloader())
    assert sorted(path for batch in batches for path in batch.image_path) == sorted(map(str, paths))
    assert [len(batch.image) for batch in batches] == [2, 1]
    assert not any(batch.gt_label.any() for batch in batches)
    assert datamodule.val_dataloader() == []


def test_the_model_learns_how_deep_the_images_are() -> None:
    datamodule = UnlabeledDataModule([], batch_size=1, largest_value=4095)
    assert isinstance(datamodule, ReadsDeepImages)
    assert datamodule.largest_value == 4095
