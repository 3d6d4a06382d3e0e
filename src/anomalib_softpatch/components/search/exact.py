# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Search of a memory bank, part by part: plain, and by an index of each part where that is faster.

Example:
    >>> import torch
    >>> from anomalib_softpatch.components import MemoryBank, NearestNeighborSearch
    >>> bank = MemoryBank(torch.randn(10_000, 512), torch.ones(10_000), None, ((0, 10_000),))
    >>> distances, rows = NearestNeighborSearch(bank).nearest(torch.randn(1024, 512), (0, 10_000))
    >>> distances.shape, rows.shape
    (torch.Size([1024]), torch.Size([1024]))
"""

from copy import copy
from typing import Any, Protocol

import torch

from anomalib_softpatch.components.search.bank import MemoryBank, Nearest, Rows, nearer
from anomalib_softpatch.components.search.plain import nearest_neighbors, squared_lengths
from anomalib_softpatch.components.search.pruned import PrunedIndex
from anomalib_softpatch.components.tracing import is_traced

# Parts of fewer elements are searched as fast without an index
SMALLEST_INDEX = 2**20


class Index(Protocol):
    """What searches one part of a bank, made before the queries come."""

    def nearest(
        self, queries: torch.Tensor, left_out: torch.Tensor | None = None, limits: torch.Tensor | None = None
    ) -> Nearest:
        """Find the nearest row of the part; see :meth:`PrunedIndex.nearest`."""


class NearestNeighborSearch:
    """Find the nearest rows of a memory bank, with indexes on a CPU, without in exported graphs and on other devices.

    An index of a part is built at its first search, in about the time of two plain ones, and kept. It adds a fifth to
    the part's memory at most.

    Args:
        bank: The memory bank.

    Attributes:
        bank: The memory bank.
        indexes: Index of each part that has been searched; ``None`` where none is faster.
    """

    def __init__(self, bank: MemoryBank) -> None:
        self.bank = bank
        self.indexes: dict[Rows, Index | None] = {}
        self._state = None if is_traced() else _state(bank)
        self._left_out: torch.Tensor | None = None

    def is_of(self, bank: MemoryBank) -> bool:
        """Return whether a bank is the one that is searched, and has not been written to since."""
        return self._state == _state(bank)

    def without(self, left_out: torch.Tensor) -> "NearestNeighborSearch":
        """Return a search of the other rows, which shares the indexes.

        Args:
            left_out: Rows of the bank that do not count, boolean of shape ``(m,)``.
        """
        search = copy(self)
        search._left_out = left_out
        return search

    def nearest(self, queries: torch.Tensor, part: Rows, known: Nearest | None = None) -> Nearest:
        """Find the nearest row of a part of the bank; see :meth:`Search.nearest`."""
        rows = slice(*part)
        left_out = None if self._left_out is None else self._left_out[rows]
        if left_out is not None and left_out.all():
            nothing = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
            distances, indices = queries.new_full((len(queries),), torch.inf), nothing
        elif (index := self._index(part)) is not None:
            distances, indices = index.nearest(queries, left_out, None if known is None else known[0])
        else:
            features, radii = self.bank.features[rows], None if self.bank.radii is None else self.bank.radii[rows]
            norms = squared_lengths(features, left_out)
            found = nearest_neighbors(queries, features, norms=norms, radii=radii)
            distances, indices = found[0].squeeze(1), found[1].squeeze(1)
        return nearer(known, (distances, indices + part[0]))

    def _index(self, part: Rows) -> Index | None:
        """Return the index of a part of the bank; ``None`` where none is faster, and in graphs."""
        features = self.bank.features[slice(*part)]
        if is_traced() or features.device.type != "cpu" or features.numel() < SMALLEST_INDEX:
            return None
        if features.dtype not in PrunedIndex.DTYPES:
            return None
        if part not in self.indexes:
            radii = self.bank.radii
            self.indexes[part] = self.make_index(features, None if radii is None else radii[slice(*part)])
        return self.indexes[part]

    def make_index(self, features: torch.Tensor, radii: torch.Tensor | None) -> Index:
        """Return an index of a part that is on the CPU and large."""
        return PrunedIndex(features, radii)


def _state(bank: MemoryBank) -> list[Any]:
    """Return what tells a bank, as long as it is held, from others and from itself after it was written to."""
    tensors = [bank.features] if bank.radii is None else [bank.features, bank.radii]
    # Tensors of inference mode have no version
    return [
        (each.data_ptr(), each.shape, each.stride(), each.dtype, 0 if each.is_inference() else each._version)
        for each in tensors
    ]
