# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What a datamodule may know about its images, in addition to what Anomalib's datamodules know."""

from typing import Protocol, runtime_checkable

import pandas as pd
import torch


@runtime_checkable
class NamesImages(Protocol):
    """A datamodule whose training images have the same names in every process and run."""

    def image_key(self, image_path: str) -> str:
        """Return the name of a training image, given its path in batches."""


@runtime_checkable
class KnowsTruth(NamesImages, Protocol):
    """A datamodule that knows which of its training images are anomalous, and where."""

    @property
    def truth(self) -> pd.DataFrame:
        """True label of every training image: ``true_label_index`` (0 or 1) by ``image_path``."""

    def true_mask(self, image_path: str) -> torch.Tensor | None:
        """Read the true mask of a training image, shape ``(H, W)``; ``None`` if it is normal or has no mask."""


@runtime_checkable
class ReadsDeepImages(Protocol):
    """A datamodule that reads images of more than 8 bits per value."""

    largest_value: int  # value that becomes 1, see anomalib_softpatch.images.reading.read_image
