# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Feature store: the patch features of the training images, stored once, batch by batch, in memory or on disk."""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

# Share of the machine's memory for features; what is computed from them takes about as much
MEMORY_SHARE = 0.25


class FeatureStore:
    """Keep the features of all training images until the memory bank is built from them.

    The images are numbered by their keys, so that the results do not depend on the order in which the images arrive;
    without keys, in the order of arrival.

    Batches are never stacked: all features are read batch by batch, so that they are stored only once. Batches beyond
    ``memory_budget``, and projections of all features that exceed it, go to a temporary folder and are mapped into
    memory from there. The folder is removed with the store, even when an error ends the fit or the interpreter.

    Args:
        dtype: Type to store the features in. ``torch.float16`` halves the memory; distances between unit-scale features
            then have relative errors of about 1e-3. Default: as they arrive.
        memory_budget: Bytes of features to keep in memory. Default: no limit.
        folder: Where the temporary folder is created. Default: the system's.

    Attributes:
        device: Device of the features that are kept in memory.

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
        """Keys of the images in the order of their numbers; empty if any image came without a key."""
        keys = [key for key in self._keys if key is not None]
        return tuple(sorted(keys)) if len(keys) == len(self._keys) else ()

    def batches(self) -> Iterator[tuple[torch.Tensor, list[str] | None]]:
        """Yield the features in the order of arrival, with their keys."""
        start = 0
        for batch in self._batches:
            keys = self._keys[start : start + len(batch)]
            start += len(batch)
            yield batch, None if None in keys else [key for key in keys if key is not None]

    def append(self, features: torch.Tensor, keys: Sequence[str] | None = None) -> None:
        """Add the features of some images.

        Args:
            features: Shape ``(images, height, width, channels)``.
            keys: What identifies and orders the images, for example their paths; one for each image.

        Raises:
            ValueError: If the shape is not of this kind or differs from that of earlier features, or if the number of
                keys is wrong.
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
            msg = f"keys must be one for each of the {len(features)} images, got {len(all_keys)}."
            raise ValueError(msg)
        self.device = features.device
        features = features.detach().to(self.dtype or features.dtype)
        size = features.numel() * features.element_size()
        if self.memory_budget is not None and self._held + size > self.memory_budget:
            mapped = self._map(features.shape, features.dtype, f"Features from image {len(self._keys) + 1} on")
            features = mapped.copy_(features)
        else:
            self._held += size
        self._batches.append(features)
        self._keys.extend(all_keys)
        self._order = None

    def _map(self, shape: Sequence[int], dtype: torch.dtype, what: str) -> torch.Tensor:
        """Return a tensor of zeros that is mapped from a new file; ``what`` names its future content in messages."""
        if self._spill is None:
            self._spill = tempfile.TemporaryDirectory(prefix="anomalib-softpatch-", dir=self.folder)
        folder, size = self._spill.name, math.prod(shape)
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            # Without allocated space, the process would end with a bus error once the disk is full.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size * dtype.itemsize)
            else:
                os.truncate(handle, size * dtype.itemsize)
        except OSError as error:
            os.close(handle)  # first: an open file may keep its folder from being removed
            self.clear()
            msg = (
                f"{what} do not fit on the disk that holds {folder}: {error}. Free space there, set the environment "
                "variable TMPDIR to a folder on a larger disk, or keep more in memory (memory_budget of a model)."
            )
            raise OSError(msg) from error
        os.close(handle)
        # Shared, so that the pages belong to the file and the system may drop them from memory.
        mapped = torch.from_file(name, shared=True, size=size, dtype=dtype)
        # The mapping keeps the data, and a killed process leaves no file behind. Windows does not remove files in use.
        with contextlib.suppress(PermissionError):
            Path(name).unlink()
        return mapped.view(*shape)

    def _arrivals(self) -> torch.Tensor:
        """Return the place of each image in the order of arrival, by its number, shape ``(images,)``."""
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
            the matrix or, without one, of the features. On disk where it is larger than ``memory_budget``.
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
            size: Join batches as long as they have no more images than this. Default: as they arrived.
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
        # Sorted, so that each batch that contains some of them is read once
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
    """Return the bytes of features that commands keep in memory: a quarter of the machine's; ``None`` if unknown."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):  # Windows
        return None
    return MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_features(features: torch.Tensor) -> None:
    """Refuse features that do not have the shape ``(images, height, width, channels)``."""
    if features.ndim != 4:  # noqa: PLR2004
        msg = f"Features must have the shape (images, height, width, channels), got {tuple(features.shape)}."
        raise ValueError(msg)
