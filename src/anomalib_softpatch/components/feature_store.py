# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Feature store: the patch features of the training images, held once, batch by batch, in memory or on disk."""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from anomalib_softpatch.components import distributed


@dataclass(frozen=True)
class Numbering:
    """Which number each image has among those of all ranks.

    Attributes:
        shape: Number of images of all ranks, patches in each and channels.
        keys: Keys of the images in the order of their numbers; empty if some came without.
        numbers: For each rank, the numbers of the images it contributes, ascending.
        places: Places in this rank's store of the images it contributes, in the order of their numbers.
    """

    shape: tuple[int, int, int]
    keys: tuple[str, ...]
    numbers: tuple[torch.Tensor, ...]
    places: torch.Tensor


class FeatureStore:
    """Keep the features of all training images until the memory bank is built from them.

    The images are numbered by their keys, so that the results depend neither on the order in which the images came
    nor on the number of processes; without keys, in the order in which they came. In a distributed fit, each rank's
    store has a share of the images. A key that several ranks have is an image that the sampler repeated to give all
    of them as many, and counts once.

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
        self._keys: list[str | None] = []
        self._numbering: Numbering | None = None
        self._held = 0
        self._device = torch.device("cpu")
        self._spill: tempfile.TemporaryDirectory | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of images held here, patches in each and channels; ``(0, 0, 0)`` while the store is empty."""
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

    def append(self, features: torch.Tensor, keys: Sequence[str] | None = None) -> None:
        """Add the features of some images.

        Args:
            features: Shape ``(images, patches, channels)``.
            keys: What tells the images apart and orders them, their paths for example, one for each.

        Raises:
            ValueError: If patches or channels differ from those of the images before, or keys are missing.
            OSError: If the features do not fit on the disk.
        """
        if self._batches and features.shape[1:] != self._batches[0].shape[1:]:
            msg = (
                f"Features of {features.shape[1]} patches x {features.shape[2]} channels follow features of "
                f"{self._batches[0].shape[1]} x {self._batches[0].shape[2]}: all training images must reach the "
                "model at one size. Use a pre-processor that resizes them."
            )
            raise ValueError(msg)
        keys = [None] * len(features) if keys is None else [str(key) for key in keys]
        if len(keys) != len(features):
            msg = f"{len(keys)} keys came with the features of {len(features)} images: give one for each."
            raise ValueError(msg)
        self._numbering = None
        self._device = features.device
        features = features.detach().to(self.dtype or features.dtype)
        size = features.numel() * features.element_size()
        if self.memory_budget is not None and self._held + size > self.memory_budget:
            features = self._to_disk(features)
        else:
            self._held += size
        self._batches.append(features)
        self._keys.extend(keys)

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

    def numbering(self) -> Numbering:
        """Number the images of all ranks, which all have to call this once the last image is in.

        Raises:
            ValueError: If patches or channels differ between ranks.
        """
        if self._numbering is None:
            self._numbering = self._number(distributed.all_gather_object((self.shape, self._keys)))
        return self._numbering

    @staticmethod
    def _number(shares: list[tuple[tuple[int, int, int], list[str | None]]]) -> Numbering:
        sizes = sorted({shape[1:] for shape, _ in shares if shape[0]})
        if len(sizes) > 1:
            msg = (
                f"The ranks have features of different numbers of patches and channels, {sizes}: all training images "
                "must reach the model at one size. Use a pre-processor that resizes them."
            )
            raise ValueError(msg)
        images = [(key, rank, place) for rank, (_, keys) in enumerate(shares) for place, key in enumerate(keys)]
        keyed = all(key is not None for key, _, _ in images)
        if keyed:
            owner = {key: rank for key, rank, _ in reversed(images)}  # the first rank that has the image
            images = sorted(image for image in images if owner[image[0]] == image[1])
        numbers = [[number for number, image in enumerate(images) if image[1] == r] for r in range(len(shares))]
        places = [place for _, rank, place in images if rank == distributed.rank()]
        return Numbering(
            shape=(len(images), *(sizes[0] if sizes else (0, 0))),
            keys=tuple(key for key, _, _ in images) if keyed else (),
            numbers=tuple(torch.tensor(each, dtype=torch.long) for each in numbers),
            places=torch.tensor(places, dtype=torch.long),
        )

    def project(self, matrix: torch.Tensor | None = None, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features of the images that this rank contributes, times a matrix.

        Args:
            matrix: Shape ``(channels, dimensions)``. Default: the identity.
            positions: Which patches of each image, shape ``(n,)``. Default: all.

        Returns:
            Shape ``(images, patches, dimensions)`` in the order of the images' numbers, float32, on the device of
            the matrix or else of the features.
        """
        numbering = self.numbering()
        _, patches, channels = numbering.shape
        device = self.device if matrix is None else matrix.device
        dimensions = channels if matrix is None else matrix.shape[1]
        patches = patches if positions is None else len(positions)
        projected = torch.empty(len(numbering.places), patches, dimensions, device=device)
        row = torch.full((self.shape[0],), -1)  # of each image held here
        row[numbering.places] = torch.arange(len(numbering.places))
        for batch, rows in zip(self._batches, row.split([len(batch) for batch in self._batches]), strict=True):
            part = batch if (rows >= 0).all() else batch[(rows >= 0).to(batch.device)]
            part = part if positions is None else part[:, positions.to(part.device)]
            part = part.to(device, torch.float32)
            projected[rows[rows >= 0].to(device)] = part if matrix is None else part @ matrix
        return projected

    def project_all(self, matrix: torch.Tensor | None, positions: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features of the images of all ranks, times a matrix, at some positions.

        Args:
            matrix: Shape ``(channels, dimensions)``. ``None``: the identity.
            positions: For each rank, which patches it asks for; the same on all ranks.

        Returns:
            Shape ``(images, len(positions[rank]), dimensions)`` in the order of the images' numbers.
        """
        if len(positions) == 1 and len(positions[0]) == self.numbering().shape[1]:
            return self.project(matrix)
        images, _, channels = self.numbering().shape
        numbers = self.numbering().numbers
        for rank, asked in enumerate(positions):
            part = self.project(matrix, asked)
            if rank == distributed.rank():
                result = part.new_empty(images, len(asked), channels if matrix is None else matrix.shape[1])
            lengths = [len(each) for each in numbers]
            for source, received in enumerate(distributed.gather(part, lengths, destination=rank)):
                result[numbers[source].to(result.device)] = received
        return result

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the features of some patches, to every rank.

        Args:
            indices: ``image * patches + patch``, images by number, shape ``(n,)``; the same on all ranks.

        Returns:
            Shape ``(n, channels)``, float32, on the device of the indices.
        """
        numbering = self.numbering()
        images, patches, channels = numbering.shape
        place = torch.full((images,), -1)  # in this store, of each image
        place[numbering.numbers[distributed.rank()]] = numbering.places
        place = place.to(indices.device)[indices // patches]
        rows = torch.zeros(len(indices), channels, device=indices.device)
        start = 0
        for batch in self._batches:
            stop = start + len(batch)
            here = ((place >= start) & (place < stop)).nonzero().squeeze(1)
            if len(here):
                picked = (place[here] - start) * patches + indices[here] % patches
                rows[here] = batch.reshape(-1, channels)[picked.to(batch.device)].to(rows.device, torch.float32)
            start = stop
        return distributed.all_reduce(rows)  # each row is zero on all ranks but one
