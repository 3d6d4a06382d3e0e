# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Feature store: the patch features of the training images, held once, batch by batch, in memory or on disk."""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

# Features and what is made of them are both held
MEMORY_SHARE = 0.25


class FeatureStore:
    """Keep the features of all training images until the memory bank is built from them.

    The images are numbered by their keys, so that the results do not depend on the order in which the images came;
    without keys, in the order in which they came.

    Batches are never stacked: what needs all features reads them batch by batch, so that the features are held once.
    Beyond ``memory_budget`` further batches, and projections of all features, go to a temporary folder and are mapped
    into memory from there. The folder is removed with the store, also when an error ends the fit or the interpreter.

    Args:
        dtype: Type to hold the features in. ``torch.float16`` halves the memory; distances between unit-scale features
            then err by about 1e-3 relative. Default: as they arrive.
        memory_budget: Bytes of features to hold in memory. Default: no limit.
        folder: Where the temporary folder is made. Default: the system's.

    Attributes:
        device: Device of the features that are held in memory.

    Example:
        >>> store = FeatureStore()
        >>> store.append(torch.randn(8, 16, 16, 64))
        >>> store.project(torch.randn(64, 4)).shape
        torch.Size([8, 16, 16, 4])
    """

    def __init__(
        self, dtype: torch.dtype | None = None, memory_budget: float | None = None, folder: str | Path | None = None
    ) -> None:
        self.dtype = dtype
        self.memory_budget = memory_budget
        self.folder = folder
        self.clear()

    def clear(self) -> None:
        """Forget all features and remove the temporary folder."""
        self._batches: list[torch.Tensor] = []
        self._keys: list[str | None] = []
        self._order: torch.Tensor | None = None
        self._held = 0
        self.device = torch.device("cpu")
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
        self.device = features.device
        features = features.detach().to(self.dtype or features.dtype)
        size = features.numel() * features.element_size()
        if self.memory_budget is not None and self._held + size > self.memory_budget:
            mapped = self._map(features.shape, features.dtype, f"Features of image {len(self._keys) + 1} and on")
            features = mapped.copy_(features)
        else:
            self._held += size
        self._batches.append(features)
        self._keys.extend(all_keys)
        self._order = None

    def _map(self, shape: Sequence[int], dtype: torch.dtype, what: str) -> torch.Tensor:
        """Return a tensor of zeros, for what is said, that is mapped from a new file."""
        if self._spill is None:
            self._spill = tempfile.TemporaryDirectory(prefix="anomalib-softpatch-", dir=self.folder)
        folder, size = self._spill.name, math.prod(shape)
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            # Room that is only promised would end the process with a bus error once the disk is full.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size * dtype.itemsize)
            else:
                os.truncate(handle, size * dtype.itemsize)
        except OSError as error:
            os.close(handle)  # first: an open file may keep its folder from being removed
            self.clear()
            msg = (
                f"{what} do not fit on the disk that holds {folder}: {error}. Free space there, set the environment "
                "variable TMPDIR to a folder on a larger disk, or hold more in memory (memory_budget of a model)."
            )
            raise OSError(msg) from error
        os.close(handle)
        # Shared, so that the pages belong to the file and the system may drop them from memory.
        mapped = torch.from_file(name, shared=True, size=size, dtype=dtype)
        # The mapping keeps the data, and a killed process leaves nothing behind. Windows removes no file in use.
        with contextlib.suppress(PermissionError):
            Path(name).unlink()
        return mapped.view(*shape)

    def _arrivals(self) -> torch.Tensor:
        """Return when each image came, by its number, shape ``(images,)``."""
        if self._order is None:
            order = range(len(self._keys))
            by_key = sorted(order, key=lambda place: str(self._keys[place])) if self.keys else order
            self._order = torch.tensor(by_key, dtype=torch.long)
        return self._order

    def project(self, matrix: torch.Tensor | None = None, images: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features of all images times a matrix.

        Args:
            matrix: Shape ``(channels, dimensions)``. Default: the identity.
            images: Numbers of the images to take, ascending, shape ``(n,)``. Default: all.

        Returns:
            Shape ``(images, height, width, dimensions)`` in the order of the images' numbers, float32, on the device of
            the matrix or else of the features. On disk where it is larger than ``memory_budget``.
        """
        count, height, width, channels = self.shape
        device = self.device if matrix is None else matrix.device
        place = torch.full((count,), -1, dtype=torch.long, device=device)
        chosen = torch.arange(count, device=device) if images is None else images.to(device)
        place[chosen] = torch.arange(len(chosen), device=device)
        shape = (len(chosen), height, width, channels if matrix is None else matrix.shape[1])
        large = self.memory_budget is not None and 4 * math.prod(shape) > self.memory_budget
        if large and device.type == "cpu":
            projected = self._map(shape, torch.float32, "Projected features")
        else:
            projected = torch.empty(shape, device=device)
        for numbers, batch in self.numbered_batches(device):
            taken = place[numbers] >= 0
            if taken.any():
                some = batch if taken.all() else batch[taken]
                projected[place[numbers][taken]] = some if matrix is None else some @ matrix
        return projected

    def numbered_batches(
        self, device: torch.device | None = None, size: int = 1
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the numbers of images and their features, batch by batch.

        The numbers have the shape ``(b,)``, and the features ``(b, height, width, channels)``, float32.

        Args:
            device: Where to put them. Default: the device of the features.
            size: Put batches together as long as they have no more images than that. Default: as they came.
        """
        device = device or self.device
        numbers = self._arrivals().argsort().to(device)
        start = 0
        while start < len(self._batches):
            stop = start + 1
            images = len(self._batches[start])
            while stop < len(self._batches) and images + len(self._batches[stop]) <= size:
                images += len(self._batches[stop])
                stop += 1
            batch = [batch.to(device, torch.float32) for batch in self._batches[start:stop]]
            yield numbers[:images], batch[0] if len(batch) == 1 else torch.cat(batch)
            numbers, start = numbers[images:], stop

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the features of some patches, float32, shape ``(n, channels)``, on the device of the indices.

        Args:
            indices: ``image * height * width + row * width + column``, images by number, shape ``(n,)``.
        """
        _, height, width, channels = self.shape
        patches = height * width
        rows = torch.empty(len(indices), channels, device=indices.device)
        images = indices.cpu() // patches
        place = self._arrivals()[images]
        # Sorted, so that only the batches are looked into that have some of them
        place, order = place.sort(stable=True)
        ends = torch.tensor([len(batch) for batch in self._batches]).cumsum(dim=0)
        batch_of = torch.searchsorted(ends, place, right=True)
        numbers, counts = batch_of.unique_consecutive(return_counts=True)
        places, orders = place.split(counts.tolist()), order.to(indices.device).split(counts.tolist())
        for number, some, here in zip(numbers.tolist(), places, orders, strict=True):
            batch = self._batches[number]
            first = int(ends[number]) - len(batch)
            picked = (some.to(indices.device) - first) * patches + indices[here] % patches
            rows[here] = batch.reshape(-1, channels)[picked.to(batch.device)].to(rows.device, torch.float32)
        return rows


def default_memory_budget() -> float | None:
    """Return the bytes of features that the commands hold in memory: a quarter of the machine's, if that is known."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):  # Windows
        return None
    return MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_features(features: torch.Tensor) -> None:
    """Refuse features that do not have the shape ``(images, height, width, channels)``."""
    if features.ndim != 4:  # noqa: PLR2004
        msg = f"Features must have the shape (images, height, width, channels), got {tuple(features.shape)}."
        raise ValueError(msg)
