# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Datamodule of unlabeled image files, all of which are trained on."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageItem
from anomalib.data.utils import LabelName, Split
from torch.utils.data import DataLoader
from torchvision.tv_tensors import Image

from anomalib_softpatch.images.reading import EIGHT_BITS, read_image


class UnlabeledDataset(AnomalibDataset):
    """Image files, all labeled normal."""

    def __init__(self, paths: Sequence[Path], largest_value: int) -> None:
        super().__init__()
        self.largest_value = largest_value
        samples = pd.DataFrame({"image_path": [str(path) for path in paths]})
        samples = samples.assign(split=Split.TRAIN.value, label_index=int(LabelName.NORMAL), mask_path="")
        samples.attrs["task"] = "classification"
        self.samples = samples

    def __getitem__(self, index: int) -> ImageItem:
        """Return an image, read in the same way as in all commands."""
        path = self.samples["image_path"].iloc[index]
        image, _ = read_image(path, self.largest_value)
        return ImageItem(image=Image(torch.from_numpy(image)), gt_label=torch.tensor(LabelName.NORMAL), image_path=path)


class UnlabeledDataModule(AnomalibDataModule):
    """Train on a list of files, and hold none back for validation or tests.

    Attributes:
        largest_value: Value that is read as 1, see :class:`~anomalib_softpatch.data.protocols.ReadsDeepImages`.
    """

    def __init__(
        self, paths: Sequence[Path], batch_size: int, num_workers: int = 0, largest_value: int = EIGHT_BITS
    ) -> None:
        super().__init__(train_batch_size=batch_size, eval_batch_size=batch_size, num_workers=num_workers)
        self.largest_value = largest_value
        self.train_data = UnlabeledDataset(paths, largest_value)

    def _setup(self, _stage: str | None = None) -> None:
        """Nothing to do: the constructor makes the dataset."""

    def _create_test_split(self) -> None:
        """Nothing to do: there are no test images."""

    def val_dataloader(self) -> list[DataLoader[ImageItem]]:
        """Return no dataloaders."""
        return []
