# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Exact search of a memory bank, part by part: plain, and pruned on a CPU. See ``docs/pruning.md`` for the proof."""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.search.bank import MemoryBank, Nearest, Rows, nearer
from anomalib_softpatch.components.search.bounds import STRIP, BoundsInStrips, rounding_allowance, sufficient_axes
from anomalib_softpatch.components.search.plain import BANK_BLOCK, nearest_row, squared_lengths
from anomalib_softpatch.components.tracing import is_traced, without_autocast

# Parts of fewer elements are searched just as fast without an index
SMALLEST_INDEX = 2**20
# At most one of this many axes is a leading one
REDUCTION = 5
# Elements of the largest temporary tensors, bounds and differences: small enough for caches
BOUND_BLOCK = 2**23
DIFFERENCE_BLOCK = 2**20
# Largest share of the rows that a query is compared with one by one: beyond it, a matrix product is faster
LARGEST_REMAINDER = 1 / 64


class Index(Protocol):
    """Search of one part of a bank, prepared before the queries arrive."""

    def nearest(
        self, queries: torch.Tensor, left_out: torch.Tensor | None = None, limits: torch.Tensor | None = None
    ) -> Nearest:
        """Find the nearest row of the part.

        Args:
            queries: Shape ``(n, d)``.
            left_out: Rows that do not count, boolean of shape ``(m,)``, not all of them. Default: all count.
            limits: Distances of shape ``(n,)``. If all rows are farther, any of them may be returned, with its
                distance. Default: none.
        """


class NearestNeighborSearch:
    """Find the nearest rows of a memory bank: with indexes on a CPU, without them in graphs and on other devices.

    The index of a part is built and kept at its first search, in about the time of two plain searches. It adds at most
    a fifth to the memory of the part.

    Attributes:
        bank: The memory bank.
        indexes: Index of each part that has been searched.
    """

    def __init__(self, bank: MemoryBank) -> None:
        self.bank = bank
        self.indexes: dict[Rows, Index] = {}
        self._state = None if is_traced() else _state(bank)
        self.left_out: torch.Tensor | None = None

    def is_of(self, bank: MemoryBank) -> bool:
        """Return whether a bank is the one that is searched, and has not been changed since."""
        return self._state == _state(bank)

    def without(self, left_out: torch.Tensor) -> "NearestNeighborSearch":
        """Return a search with the same indexes that leaves out rows, given as a boolean tensor of shape ``(m,)``."""
        search = copy(self)
        search.left_out = left_out
        return search

    def nearest(self, queries: torch.Tensor, part: Rows, known: Nearest | None = None) -> Nearest:
        """Find the nearest row of a part of the bank; see :meth:`Search.nearest`."""
        rows = slice(*part)
        features, radii = self.bank.features[rows], None if self.bank.radii is None else self.bank.radii[rows]
        left_out = None if self.left_out is None else self.left_out[rows]
        if left_out is not None and left_out.all():
            distances = queries.new_full((len(queries),), torch.inf)
            indices = torch.zeros_like(distances, dtype=torch.long)
        elif (index := self._index(part, features, radii)) is not None:
            distances, indices = index.nearest(queries, left_out, None if known is None else known[0])
        else:
            norms = squared_lengths(features, left_out)
            distances, indices = nearest_row(queries, features, norms=norms, radii=radii)
        return nearer(known, (distances, indices + part[0]))

    def _index(self, part: Rows, features: torch.Tensor, radii: torch.Tensor | None) -> Index | None:
        """Return the index of a part of the bank; ``None`` in graphs and where an index is not faster."""
        fits = features.device.type == "cpu" and features.dtype in PrunedIndex.DTYPES
        if is_traced() or not fits or features.numel() < SMALLEST_INDEX:
            return None
        if part not in self.indexes:
            self.indexes[part] = self.make_index(features, radii)
        return self.indexes[part]

    def make_index(self, features: torch.Tensor, radii: torch.Tensor | None) -> Index:
        """Return an index of a part that is on the CPU and large."""
        return PrunedIndex(features, radii)


def _state(bank: MemoryBank) -> list[Any]:
    """Return values that differ between banks in memory, and change if a bank is changed."""
    return [
        # Tensors of inference mode have no version
        (each.data_ptr(), each.shape, each.stride(), each.dtype, 0 if each.is_inference() else each._version)
        for each in (bank.features, bank.radii)
        if each is not None
    ]


class PrunedIndex:
    """Search rows by lower bounds of the distances first, and by distances only where the bounds leave rows in doubt.

    Rows are reduced to a fifth of their length or less, see :class:`LeadingAxes`.

    Args:
        features: Shape ``(m, d)``, float32 or float64, on the CPU.
        radii: Support radii of the rows, shape ``(m,)``. Default: none.
    """

    DTYPES = (torch.float32, torch.float64)

    @torch.no_grad()
    def __init__(self, features: torch.Tensor, radii: torch.Tensor | None = None) -> None:
        self.features = features
        self.radii = radii
        self.squared_lengths = squared_lengths(features)
        self.points: torch.Tensor | None = None  # reduced rows in whole strips; None if bounds rule out too few rows
        axes = sufficient_axes(features, features.shape[1] // REDUCTION)
        if axes is None:
            return
        self.axes = axes
        points = torch.cat([axes.reduce(part) for part in features.split(BANK_BLOCK)])
        norms = points.square().sum(dim=1)
        padding = -len(features) % STRIP
        self.points = F.pad(points, (0, 0, 0, padding))
        self.norms = F.pad(norms, (0, padding), value=torch.inf)
        self.smallest = None if radii is None else F.pad(radii.square(), (0, padding))

    @torch.no_grad()
    def nearest(
        self, queries: torch.Tensor, left_out: torch.Tensor | None = None, limits: torch.Tensor | None = None
    ) -> Nearest:
        """Find the nearest row, see :meth:`Index.nearest`."""
        lengths = self.squared_lengths
        if left_out is not None:  # an infinite length is never within a limit
            lengths = lengths.masked_fill(left_out, torch.inf)
        plainly = partial(nearest_row, bank=self.features, norms=lengths, radii=self.radii)
        if self.points is None:
            return plainly(queries)
        norms = self.norms
        if left_out is not None:
            norms = norms.masked_fill(F.pad(left_out, (0, len(norms) - len(left_out))), torch.inf)
        size = max(1, BOUND_BLOCK // len(self.points))
        limits = queries.new_full((len(queries),), torch.inf) if limits is None else limits
        blocks = zip(queries.split(size), limits.split(size), strict=True)
        parts = [self._nearest_of_block(*block, self.points, norms, plainly) for block in blocks]
        distances, rows = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(rows)

    def _nearest_of_block(
        self,
        queries: torch.Tensor,
        limits: torch.Tensor,
        bank_points: torch.Tensor,
        bank_norms: torch.Tensor,
        plainly: Callable[[torch.Tensor], Nearest],
    ) -> Nearest:
        points = self.axes.reduce(queries)
        norms = points.square().sum(dim=1)
        # Squared bounds without |q|^2
        with without_autocast(queries.device):
            squares = torch.addmm(bank_norms, points, bank_points.T, alpha=-2)
        if self.smallest is not None:
            squares = torch.maximum(squares, self.smallest - norms[:, None])
        bounds = BoundsInStrips(squares)

        # The nearest row is at most as far away as the most promising one
        promising = bounds.most_promising()
        farthest = self._squares(queries, promising)
        least = torch.where(limits.square() < farthest, limits.square(), farthest)
        row, column = bounds.within(least - norms + rounding_allowance(queries, points, least))
        count = torch.bincount(row, minlength=len(queries))
        none = (count == 0) & (least < farthest)  # no row is within the limit; with NaN, count is 0, too
        hard = (count > LARGEST_REMAINDER * len(self.features)) | ((count == 0) & ~none)
        easy = ~hard & ~none
        keep = easy[row]
        row, column = row[keep], column[keep]
        size = max(1, DIFFERENCE_BLOCK // queries.shape[1])
        pairs = zip(row.split(size), column.split(size), strict=True)
        squares = torch.cat([self._squares(queries[some], others) for some, others in pairs])
        # Sorted by row, then distance, then column: the first of each row
        order = squares.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        found = order[F.pad(count[easy].cumsum(dim=0), (1, 0))[:-1]]
        distances, indices = farthest.sqrt(), promising
        distances[easy], indices[easy] = squares[found].sqrt(), column[found]
        if hard.any():
            distances[hard], indices[hard] = plainly(queries[hard])
        return distances, indices

    def _squares(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the squared distances of queries to one row each, shape ``(n,)``."""
        squares = (queries - self.features[rows]).square_().sum(dim=1)
        return squares if self.radii is None else torch.maximum(squares, self.radii[rows].square())
