# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Feature store: the patch features of the training images, held once, batch by batch, in memory or on disk."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch


class FeatureStore:
    """Keep the features of all training images until the memory bank is built from them.

    The images are numbered by their keys, so that the results do not depend on the order in which the images came;
    without keys, in the order in which they came.

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
        >>> store.append(torch.randn(8, 16, 16, 64))
        >>> store.shape
        (8, 16, 16, 64)
        >>> store.project(torch.randn(64, 4)).shape
        torch.Size([8, 16, 16, 4])
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
        self._keys: list[str | None] = []
        self._held = 0
        self._device = torch.device("cpu")
        self._spill: tempfile.TemporaryDirectory[str] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, height and width of the grid of patches, and channels; zeros while the store is empty."""
        if not self._batches:
            return (0, 0, 0, 0)
        _, height, width, channels = self._batches[0].shape
        return (sum(len(batch) for batch in self._batches), height, width, channels)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the images in the order of their numbers; empty if some came without."""
        keys = [key for key in self._keys if key is not None]
        return tuple(sorted(keys)) if len(keys) == len(self._keys) else ()

    @property
    def device(self) -> torch.device:
        """Device of the features that are held in memory."""
        return self._device

    def batches(self) -> Iterator[tuple[torch.Tensor, list[str] | None]]:
        """Yield the features in the order in which they came, with their keys."""
        start = 0
        for batch in self._batches:
            keys = self._keys[start : start + len(batch)]
            start += len(batch)
            yield batch, None if None in keys else [key for key in keys if key is not None]

    def append(self, features: torch.Tensor, keys: Sequence[str] | None = None) -> None:
        """Add the features of some images.

        Args:
            features: Shape ``(images, height, width, channels)``.
            keys: What tells the images apart and orders them, their paths for example, one for each.

        Raises:
            ValueError: If they are of another shape than that or than those before, or keys are missing.
            OSError: If the features do not fit on the disk.
        """
        check_features(features)
        if self._batches and features.shape[1:] != self._batches[0].shape[1:]:
            (_, *new), (_, *known) = features.shape, self._batches[0].shape
            msg = (
                f"Features of {new[0]} x {new[1]} patches x {new[2]} channels follow features of {known[0]} x "
                f"{known[1]} x {known[2]}: all training images must reach the model at one size. Use a pre-processor "
                "that resizes them."
            )
            raise ValueError(msg)
        all_keys = [None] * len(features) if keys is None else [str(key) for key in keys]
        if len(all_keys) != len(features):
            msg = f"{len(all_keys)} keys came with the features of {len(features)} images: give one for each."
            raise ValueError(msg)
        self._device = features.device
        features = features.detach().to(self.dtype or features.dtype)
        size = features.numel() * features.element_size()
        if self.memory_budget is not None and self._held + size > self.memory_budget:
            features = self._to_disk(features)
        else:
            self._held += size
        self._batches.append(features)
        self._keys.extend(all_keys)

    def _to_disk(self, features: torch.Tensor) -> torch.Tensor:
        if self._spill is None:
            self._spill = tempfile.TemporaryDirectory(prefix="anomalib-softpatch-", dir=self.folder)
        path = Path(self._spill.name) / f"{len(self._batches)}.bin"
        try:
            features.cpu().contiguous().view(torch.uint8).numpy().tofile(path)
        except OSError as error:
            used, folder = self.shape[0], self._spill.name
            self.clear()
            msg = (
                f"Features of image {used + 1} and on do not fit on the disk that holds {folder}: {error}. Free "
                "space there, set the environment variable TMPDIR to a folder on a larger disk, or raise memory_budget."
            )
            raise OSError(msg) from error
        # Shared, so that the pages belong to the file and the system may drop them from memory.
        mapped = torch.from_file(str(path), shared=True, size=features.numel(), dtype=features.dtype)
        # The mapping keeps the data, and a killed process leaves nothing behind. Windows removes no file in use.
        with contextlib.suppress(PermissionError):
            path.unlink()
        return mapped.view(features.shape)

    def _numbers(self) -> torch.Tensor:
        """Number of each image in the order in which they came, shape ``(images,)``."""
        order = list(range(len(self._keys)))
        if self.keys:
            order = sorted(order, key=lambda place: str(self._keys[place]))
        numbers = torch.empty(len(self._keys), dtype=torch.long)
        numbers[torch.tensor(order, dtype=torch.long)] = torch.arange(len(self._keys))
        return numbers

    def project(self, matrix: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features of all images times a matrix.

        Args:
            matrix: Shape ``(channels, dimensions)``. Default: the identity.

        Returns:
            Shape ``(images, height, width, dimensions)`` in the order of the images' numbers, float32, on the device of
            the matrix or else of the features.
        """
        images, height, width, channels = self.shape
        device = self.device if matrix is None else matrix.device
        projected = torch.empty(images, height, width, channels if matrix is None else matrix.shape[1], device=device)
        for numbers, batch in self.numbered_batches(device):
            projected[numbers] = batch if matrix is None else batch @ matrix
        return projected

    def numbered_batches(self, device: torch.device | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the features batch by batch, with the numbers of their images.

        Args:
            device: Where to put them. Default: the device of the features.

        Yields:
            Numbers of the images, shape ``(b,)``, and features of shape ``(b, height, width, channels)``, float32.
        """
        device = device or self.device
        numbers = self._numbers().to(device)
        for batch, rows in zip(self._batches, numbers.split([len(batch) for batch in self._batches]), strict=True):
            yield rows, batch.to(device, torch.float32)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the features of some patches.

        Args:
            indices: ``image * height * width + row * width + column``, images by number, shape ``(n,)``.

        Returns:
            Shape ``(n, channels)``, float32, on the device of the indices.
        """
        _, height, width, channels = self.shape
        patches = height * width
        place = self._numbers().argsort().to(indices.device)[indices // patches]
        rows = torch.empty(len(indices), channels, device=indices.device)
        start = 0
        for batch in self._batches:
            here = ((place >= start) & (place < start + len(batch))).nonzero().squeeze(1)
            if len(here):
                picked = (place[here] - start) * patches + indices[here] % patches
                rows[here] = batch.reshape(-1, channels)[picked.to(batch.device)].to(rows.device, torch.float32)
            start += len(batch)
        return rows


def check_features(features: torch.Tensor) -> None:
    """Refuse features that do not come as a grid for each image.

    Raises:
        ValueError: If the shape is not ``(images, height, width, channels)``.
    """
    if features.ndim != 4:  # noqa: PLR2004
        msg = f"Features must have the shape (images, height, width, channels), got {tuple(features.shape)}."
        raise ValueError(msg)
