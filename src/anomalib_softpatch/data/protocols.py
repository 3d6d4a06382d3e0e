# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What a datamodule may know of its training images beyond what Anomalib's do."""

from typing import Protocol, runtime_checkable

import pandas as pd
import torch


@runtime_checkable
class NamesImages(Protocol):
    """A datamodule whose training images have the same names in every process and run."""

    def image_key(self, image_path: str) -> str:
        """Return what a training image is called, by its path as batches have it."""


@runtime_checkable
class KnowsTruth(NamesImages, Protocol):
    """A datamodule that knows which of its training images are anomalous, and where."""

    @property
    def truth(self) -> pd.DataFrame:
        """What every training image is: ``true_label_index`` (0 or 1) by ``image_path``."""

    def true_mask(self, image_path: str) -> torch.Tensor | None:
        """Read where a training image is anomalous, shape ``(H, W)``; ``None`` for nowhere, or without masks."""


@runtime_checkable
class ReadsDeepImages(Protocol):
    """A datamodule that reads images of more than 8 bits per value."""

    largest_value: int  # that becomes 1, see anomalib_softpatch.images.reading.read_image
