# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Feature store: the patch features of the training pictures, held once, batch by batch, in memory or on disk."""

import contextlib
import tempfile
from pathlib import Path

import torch


class FeatureStore:
    """Keep the features of all training pictures until the memory bank is built from them.

    Batches are never stacked: what needs all features reads them batch by batch, so that the features are held once.
    Beyond ``memory_budget`` further batches go to a temporary folder and are mapped into memory from there. The folder
    is removed with the store, also when an error ends the fit or the interpreter.

    Args:
        dtype: Type to hold the features in. ``torch.float16`` halves the memory; distances between unit-scale features
            then err by about 1e-3 relative. Default: as they arrive.
        memory_budget: Bytes of features to hold in memory. Default: no limit.
        folder: Where the temporary folder is made. Default: the system's.

    Example:
        >>> store = FeatureStore()
        >>> store.append(torch.randn(8, 16 * 16, 64))
        >>> store.shape
        (8, 256, 64)
        >>> store.project(torch.randn(64, 4)).shape
        torch.Size([8, 256, 4])
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        memory_budget: float | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.dtype = dtype
        self.memory_budget = memory_budget
        self.folder = folder
        self.clear()

    def clear(self) -> None:
        """Forget all features and remove the temporary folder."""
        self._batches: list[torch.Tensor] = []
        self._held = 0
        self._device = torch.device("cpu")
        self._spill: tempfile.TemporaryDirectory | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of pictures, patches in each and channels; ``(0, 0, 0)`` while the store is empty."""
        if not self._batches:
            return (0, 0, 0)
        return (sum(len(batch) for batch in self._batches), *self._batches[0].shape[1:])

    @property
    def device(self) -> torch.device:
        """Device of the features that are held in memory."""
        return self._device

    @property
    def on_disk(self) -> bool:
        """Whether some of the features lie on disk."""
        return self._spill is not None

    def append(self, features: torch.Tensor) -> None:
        """Add the features of some pictures.

        Args:
            features: Shape ``(pictures, patches, channels)``.

        Raises:
            ValueError: If patches or channels differ from those of the pictures before.
            OSError: If the features do not fit on the disk.
        """
        if self._batches and features.shape[1:] != self._batches[0].shape[1:]:
            msg = (
                f"Features of {features.shape[1]} patches x {features.shape[2]} channels follow features of "
                f"{self._batches[0].shape[1]} x {self._batches[0].shape[2]}: all training pictures must reach the "
                "model at one size. Use a pre-processor that resizes them."
            )
            raise ValueError(msg)
        self._device = features.device
        features = features.detach().to(self.dtype or features.dtype)
        size = features.numel() * features.element_size()
        if self.memory_budget is not None and self._held + size > self.memory_budget:
            features = self._to_disk(features)
        else:
            self._held += size
        self._batches.append(features)

    def _to_disk(self, features: torch.Tensor) -> torch.Tensor:
        if self._spill is None:
            self._spill = tempfile.TemporaryDirectory(prefix="anomalib-softpatch-", dir=self.folder)
        path = Path(self._spill.name) / f"{len(self._batches)}.bin"
        try:
            features.cpu().contiguous().view(torch.uint8).numpy().tofile(path)
        except OSError as error:
            used, folder = sum(len(batch) for batch in self._batches), self._spill.name
            self.clear()
            msg = (
                f"Features of picture {used + 1} and on do not fit on the disk that holds {folder}: {error}. Free "
                "space there, set the environment variable TMPDIR to a folder on a larger disk, or raise memory_budget."
            )
            raise OSError(msg) from error
        # Shared, so that the pages belong to the file and the system may drop them from memory.
        mapped = torch.from_file(str(path), shared=True, size=features.numel(), dtype=features.dtype)
        # The mapping keeps the data, and a killed process leaves nothing behind. Windows removes no file in use.
        with contextlib.suppress(PermissionError):
            path.unlink()
        return mapped.view(features.shape)

    def project(self, matrix: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features of all pictures, times a matrix.

        Args:
            matrix: Shape ``(channels, dimensions)``. Default: the identity.

        Returns:
            Shape ``(pictures, patches, dimensions)``, float32, on the device of the matrix or else of the features.
        """
        pictures, patches, channels = self.shape
        device = self.device if matrix is None else matrix.device
        dimensions = channels if matrix is None else matrix.shape[1]
        projected = torch.empty(pictures, patches, dimensions, device=device)
        start = 0
        for batch in self._batches:
            part = batch.to(device, torch.float32)
            projected[start : start + len(batch)] = part if matrix is None else part @ matrix
            start += len(batch)
        return projected

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the features of some patches.

        Args:
            indices: ``picture * patches + patch``, shape ``(n,)``.

        Returns:
            Shape ``(n, channels)``, float32, on the device of the indices.
        """
        _, patches, channels = self.shape
        rows = torch.empty(len(indices), channels, device=indices.device)
        start = 0
        for batch in self._batches:
            stop = start + len(batch) * patches
            here = ((indices >= start) & (indices < stop)).nonzero().squeeze(1)
            if len(here):
                picked = batch.reshape(-1, channels)[(indices[here] - start).to(batch.device)]
                rows[here] = picked.to(rows.device, torch.float32)
            start = stop
        return rows
