# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Datamodule of image files that nobody has labelled: all of them train."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from anomalib.data.utils import LabelName, Split
from torch.utils.data import DataLoader


class UnlabelledDataset(AnomalibDataset):
    """Image files, all taken for normal.

    Args:
        paths: Image files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        samples = pd.DataFrame({"image_path": [str(path) for path in paths]})
        samples = samples.assign(split=Split.TRAIN.value, label_index=int(LabelName.NORMAL), mask_path="")
        samples.attrs["task"] = "classification"
        self.samples = samples


class UnlabelledDataModule(AnomalibDataModule):
    """Train on a list of files, and hold none back for validation or tests.

    Args:
        paths: Image files.
        batch_size: Images in a batch.
        num_workers: Processes that read images.
    """

    def __init__(self, paths: Sequence[Path], batch_size: int = 16, num_workers: int = 0) -> None:
        super().__init__(train_batch_size=batch_size, eval_batch_size=batch_size, num_workers=num_workers)
        self._paths = list(paths)

    def _setup(self, _stage: str | None = None) -> None:
        """Make the dataset."""
        self.train_data = UnlabelledDataset(self._paths)

    def _create_test_split(self) -> None:
        """Nothing to do: there are no test images."""

    def _create_val_split(self) -> None:
        """Nothing to do: there are no validation images."""

    def val_dataloader(self) -> list[DataLoader[ImageItem]]:
        """Return none."""
        return []
