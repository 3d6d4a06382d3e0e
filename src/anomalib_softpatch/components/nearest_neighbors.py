# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Nearest neighbours of patches in the memory bank, exact: in plain operations, and pruned for the CPU.

Example:
    >>> import torch
    >>> from anomalib_softpatch.components import NearestNeighborSearch
    >>> search = NearestNeighborSearch()
    >>> bank = torch.randn(10_000, 512)
    >>> distances, indices = search(torch.randn(1024, 512), bank)
    >>> distances.shape, indices.shape
    (torch.Size([1024, 1]), torch.Size([1024, 1]))
"""

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.pruning import GROUP_SIZE, GroupedBounds, rounding_allowance, sufficient_axes
from anomalib_softpatch.components.tracing import is_traced, without_autocast

# Bank rows and queries in one matrix product: bounds memory. Exported graphs, which take any number of queries at once,
# need (queries x BANK_BLOCK) elements, a few times.
BANK_BLOCK = 4096
QUERY_BLOCK = 4096

# Banks of fewer elements are searched as fast without an index
SMALLEST_INDEX = 2**20
# One of so many axes at most is a leading one
REDUCTION = 5
# Rows of the bank whose minimum a graph takes at first
ROWS_OF_GROUP = 16
# Elements of the largest temporary tensors, bounds and differences: small enough for caches
BOUND_BLOCK = 2**23
DIFFERENCE_BLOCK = 2**20
# Neighbours looked at where rows are left out that an index cannot leave out itself, the second number where the first
# are all left out, before the bank is searched without the index
NEIGHBORS = (4, 32)
# Share of the bank that a query may be compared with one by one: beyond it a matrix product is faster
LARGEST_REMAINDER = 1 / 64

# Distances to rows of a bank, and these rows, one of each query; both of shape (n,)
Nearest = tuple[torch.Tensor, torch.Tensor]


def nearest_neighbors(
    queries: torch.Tensor,
    bank: torch.Tensor,
    k: int = 1,
    within: tuple[int, int] | None = None,
    needed: torch.Tensor | None = None,
    norms: torch.Tensor | None = None,
    radii: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest rows of the bank by Euclidean distance, exactly, in operations that every export target has.

    Matrix products find the neighbors; the distances come from the differences, so that they keep their digits where
    a query lies close to its neighbor. (Anomalib's PatchCore takes them from the expanded square.)

    A row with a support radius is no nearer than that: its distance is the mutual reachability distance
    ``max(distance, radius)``, see :mod:`anomalib_softpatch.components.support_radii`.

    Args:
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        k: Number of neighbours, at most m.
        within: Rows ``(start, stop)`` of the bank to search, which a graph then does not store beside the bank.
            Default: all.
        needed: Whether the result will be used, a boolean scalar: if not, a graph searches a few rows of each block.
            Default: it will. For ``k = 1``.
        norms: Squared lengths of the rows of the bank, shape ``(m,)``; infinity where a row does not count. Default:
            they are computed.
        radii: Support radii of the rows of the bank, shape ``(m,)``. Default: none.

    Returns:
        Distances and indices (rows of the bank), both of shape ``(n, k)``, nearest first.
    """
    traced = is_traced()
    first, last = within or (0, len(bank))
    if not traced and len(queries) > QUERY_BLOCK:
        parts = [
            nearest_neighbors(part, bank, k, within, norms=norms, radii=radii) for part in queries.split(QUERY_BLOCK)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    # |q - b|^2 without |q|^2, which is the same for all b
    scaled, norms = -2 * queries, _squared_lengths(bank) if norms is None else norms
    smallest = None if radii is None else radii.square()
    lengths = scaled.square().sum(dim=1, keepdim=True) / 4  # of the scaled queries: compression leaves these alone
    nearest = torch.zeros_like(queries[:, :1], dtype=torch.long)
    for start in range(first, last, BANK_BLOCK):
        stop = min(start + BANK_BLOCK, last)
        groups = None
        if traced and stop - start < len(bank):
            # Runtimes would work on all blocks at once, and store each of them beside the bank. Rows whose numbers
            # depend on the result of the block before (by the addition of zero) can neither be read early nor copied.
            after = nearest.amin(dim=(0, 1)).clamp(max=0)
            groups = _first_of_groups(start, stop, after, needed) if k == 1 else None
            rows = torch.arange(start, stop, device=bank.device) + after if groups is None else _members(groups, stop)
            part, part_norms = bank.index_select(0, rows), norms.index_select(0, rows)
            part_smallest = None if smallest is None else smallest.index_select(0, rows)
        else:
            part, part_norms = bank[start:stop], norms[start:stop]
            part_smallest = None if smallest is None else smallest[start:stop]
        with without_autocast(queries.device):
            squares = F.linear(scaled, part, part_norms)  # which exporters write without transposing the bank
        if part_smallest is not None:
            squares = torch.maximum(squares, part_smallest - lengths)
        if groups is not None:
            value, index = _least(squares, groups.shape[0])
        elif k == 1:  # much faster than topk
            value, index = squares.min(dim=1, keepdim=True)
        else:
            value, index = squares.topk(min(k, stop - start), dim=1, largest=False)
        index = (index + start).clamp(max=stop - 1)  # a group may repeat the block's last row
        if start == first:
            values, nearest = value, index
        elif k == 1:
            closer = value < values
            values, nearest = torch.where(closer, value, values), torch.where(closer, index, nearest)
        else:
            values, best = torch.cat((values, value), dim=1).topk(min(k, stop - first), dim=1, largest=False)
            nearest = torch.cat((nearest, index), dim=1).gather(1, best)
    distances = (queries[:, None] - bank[nearest]).square().sum(dim=2).sqrt()
    return distances if radii is None else torch.maximum(distances, radii[nearest]), nearest


def _first_of_groups(start: int, stop: int, after: torch.Tensor, needed: torch.Tensor | None) -> torch.Tensor:
    """Return the first row of each group of a block, or of its first group only where the block is not needed.

    Args:
        start: The block's first row.
        stop: The row after its last.
        after: 0, from what has to be computed before.
        needed: See :func:`nearest_neighbors`.
    """
    groups = torch.arange(start, stop, ROWS_OF_GROUP, device=after.device) + after
    return groups if needed is None else groups[(needed | (groups == start)).nonzero().squeeze(1)]


def _members(groups: torch.Tensor, stop: int) -> torch.Tensor:
    """Return the rows of groups, the first ones of all groups first; the last one again where there are no more."""
    rows = groups + torch.arange(ROWS_OF_GROUP, device=groups.device)[:, None]
    return rows.clamp(max=stop - 1).flatten()


def _least(squares: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least value for each query and the first row that has it, both of shape ``(n, 1)``.

    Runtimes find minima alone several times faster than minima and their places.

    Args:
        squares: Values of rows in groups of neighbouring ones, the first row of all groups first, shape
            ``(n, ROWS_OF_GROUP * count)``.
        count: Number of groups.
    """
    best = squares.view(-1, ROWS_OF_GROUP, count).amin(dim=1).argmin(dim=1, keepdim=True)
    columns = torch.arange(ROWS_OF_GROUP, device=squares.device) * count + best
    value, place = squares.gather(1, columns).min(dim=1, keepdim=True)
    return value, best * ROWS_OF_GROUP + place


def nearer(first: Nearest | None, second: Nearest) -> Nearest:
    """Return the nearer of two rows for each query, the first of equally near ones; the second where it is alone."""
    if first is None:
        return second
    closer = (first[0] < second[0]) | ((first[0] == second[0]) & (first[1] < second[1]))
    return torch.where(closer, first[0], second[0]), torch.where(closer, first[1], second[1])


def select(nearest: Nearest, some: torch.Tensor) -> Nearest:
    """Return what is nearest to some of the queries."""
    return nearest[0].index_select(0, some), nearest[1].index_select(0, some)


def put(nearest: Nearest, some: torch.Tensor, others: Nearest) -> Nearest:
    """Return what is nearest with other rows for some of the queries; a query that is named twice has equal ones."""
    return nearest[0].index_put((some,), others[0]), nearest[1].index_put((some,), others[1])


class Index:
    """What searches one bank, made before the queries come.

    Attributes:
        bank: The bank, shape ``(m, d)``.
        radii: Support radii of its rows, shape ``(m,)``; ``None`` for none.
    """

    bank: torch.Tensor
    radii: torch.Tensor | None

    def search(self, queries: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Find rows of the bank; arguments and returns are those of :func:`nearest_neighbors`."""
        raise NotImplementedError

    def nearest(
        self, queries: torch.Tensor, left_out: torch.Tensor | None = None, limits: torch.Tensor | None = None
    ) -> Nearest:
        """Find the nearest row, as :meth:`NearestNeighborSearch.nearest` does; one row counts at least."""
        if left_out is None:
            distances, indices = self.search(queries)
            return distances.squeeze(1), indices.squeeze(1)
        distance, index = queries.new_empty(len(queries)), torch.empty(len(queries), dtype=torch.long)
        rest = torch.arange(len(queries))
        for k in NEIGHBORS:
            distances, indices = self.search(queries[rest], min(k, len(self.bank)))
            counts = ~left_out[indices]
            first = counts.int().argmax(dim=1, keepdim=True)
            distance[rest], index[rest] = distances.gather(1, first).squeeze(1), indices.gather(1, first).squeeze(1)
            rest = rest[~counts.any(dim=1)]
            if not len(rest):
                return distance, index
        norms = _squared_lengths(self.bank, left_out)
        distances, indices = nearest_neighbors(queries[rest], self.bank, norms=norms, radii=self.radii)
        distance[rest], index[rest] = distances.squeeze(1), indices.squeeze(1)
        return distance, index


class NearestNeighborSearch:
    """Find nearest neighbours with an index of each bank where that is faster: on a CPU, outside of exported graphs.

    An index is built at the first search, in about the time of two plain ones, and kept while the bank stays the same.
    It adds a fifth to the bank's memory at most. Copies and pickles leave it out and build their own.
    """

    def __init__(self) -> None:
        self._indexes: dict[tuple[Any, ...], Index] = {}

    def __call__(
        self, queries: torch.Tensor, bank: torch.Tensor, k: int = 1, radii: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest rows of the bank; arguments and returns are those of :func:`nearest_neighbors`."""
        index = self._index(bank, radii)
        return nearest_neighbors(queries, bank, k, radii=radii) if index is None else index.search(queries, k)

    def nearest(
        self,
        queries: torch.Tensor,
        bank: torch.Tensor,
        left_out: torch.Tensor | None = None,
        limits: torch.Tensor | None = None,
        radii: torch.Tensor | None = None,
    ) -> Nearest:
        """Find the nearest row of the bank, which may be restricted.

        Args:
            queries: Shape ``(n, d)``.
            bank: Shape ``(m, d)``.
            left_out: Rows of the bank that do not count, boolean of shape ``(m,)``. Default: all count.
            limits: Distances of shape ``(n,)``. Where all rows are farther, any of them may be named, with its
                distance. Default: none.
            radii: Support radii of the rows of the bank, shape ``(m,)``. Default: none.

        Returns:
            Distances and indices of shape ``(n,)``; infinite and 0 if all rows are left out.
        """
        if left_out is not None and left_out.all():
            nothing = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
            return queries.new_full((len(queries),), torch.inf), nothing
        index = self._index(bank, radii)
        if index is not None:
            return index.nearest(queries, left_out, limits)
        distances, indices = nearest_neighbors(queries, bank, norms=_squared_lengths(bank, left_out), radii=radii)
        return distances.squeeze(1), indices.squeeze(1)

    def _index(self, bank: torch.Tensor, radii: torch.Tensor | None) -> Index | None:
        """Return the index of a bank; ``None`` where none is faster, and in graphs."""
        if is_traced():
            return None
        if bank.device.type != "cpu" or bank.numel() < SMALLEST_INDEX or bank.dtype not in PrunedIndex.DTYPES:
            self._forget_others(bank)
            return None
        of_radii = None if radii is None else (radii.data_ptr(), _version(radii))
        key = (bank.data_ptr(), bank.shape, bank.stride(), bank.dtype, of_radii, _version(bank))
        if key not in self._indexes:
            # An index holds its bank and radii, so that no others can come to lie at the same addresses.
            self._forget_others(bank)
            self._indexes[key] = self.make_index(bank, radii)
        return self._indexes[key]

    def _forget_others(self, bank: torch.Tensor) -> None:
        """Keep the indexes of other parts of a bank only, as long as it has not changed."""
        storage, version = bank.untyped_storage().data_ptr(), _version(bank)
        self._indexes = {
            other: index
            for other, index in self._indexes.items()
            if index.bank.untyped_storage().data_ptr() == storage and other[-1] == version
        }

    def make_index(self, bank: torch.Tensor, radii: torch.Tensor | None = None) -> Index:
        """Return an index of a bank that is on the CPU and large."""
        return PrunedIndex(bank, radii)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def _squared_lengths(bank: torch.Tensor, left_out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the squared lengths of the rows of a bank, infinity where they are left out."""
    parts = (bank,) if is_traced() else bank.split(BANK_BLOCK)  # squares of a large bank are another one
    lengths = torch.cat([part.square().sum(dim=1) for part in parts])
    return lengths if left_out is None else lengths.masked_fill(left_out, torch.inf)


def _version(bank: torch.Tensor) -> int:
    """Return a number that changes with every change of a bank in place."""
    return 0 if bank.is_inference() else bank._version


class PrunedIndex(Index):
    """Search a bank by lower bounds of the distances first, and by distances only where the bounds leave a doubt.

    Rows are reduced to a fifth of their length or less, see :class:`LeadingAxes`.

    Args:
        bank: Shape ``(m, d)``, float32 or float64, on the CPU.
        radii: Support radii of its rows, shape ``(m,)``. Default: none.

    Attributes:
        bank: The bank.
        radii: The support radii.
        points: Reduced bank, padded to whole groups; ``None`` if bounds would rule out too little.
    """

    DTYPES = (torch.float32, torch.float64)

    @torch.no_grad()
    def __init__(self, bank: torch.Tensor, radii: torch.Tensor | None = None) -> None:
        self.bank = bank
        self.radii = radii
        self.squared_lengths = _squared_lengths(bank)
        self.points: torch.Tensor | None = None
        axes = sufficient_axes(bank, bank.shape[1] // REDUCTION)
        if axes is None:
            return
        self.axes = axes
        points = torch.cat([self.axes.reduce(part) for part in bank.split(BANK_BLOCK)])
        norms = points.square().sum(dim=1)
        padding = -len(bank) % GROUP_SIZE
        self.points = F.pad(points, (0, 0, 0, padding))
        self.norms = F.pad(norms, (0, padding), value=torch.inf)
        self.smallest = None if radii is None else F.pad(radii.square(), (0, padding))

    @torch.no_grad()
    def search(self, queries: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest rows of the bank; arguments and returns are those of :func:`nearest_neighbors`."""
        return self._search(queries, k)

    @torch.no_grad()
    def nearest(
        self, queries: torch.Tensor, left_out: torch.Tensor | None = None, limits: torch.Tensor | None = None
    ) -> Nearest:
        """Find the nearest row, as :meth:`NearestNeighborSearch.nearest` does; one row counts at least."""
        distances, indices = self._search(queries, 1, left_out, limits)
        return distances.squeeze(1), indices.squeeze(1)

    def _search(
        self,
        queries: torch.Tensor,
        k: int,
        left_out: torch.Tensor | None = None,
        limits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        squared_lengths = self.squared_lengths
        if left_out is not None:  # an infinite length is never within a limit
            squared_lengths = squared_lengths.masked_fill(left_out, torch.inf)
        if self.points is None or k > len(self.points) // GROUP_SIZE:
            return nearest_neighbors(queries, self.bank, k, norms=squared_lengths, radii=self.radii)
        norms = self.norms
        if left_out is not None:
            norms = norms.masked_fill(F.pad(left_out, (0, len(norms) - len(left_out))), torch.inf)
        size = max(1, BOUND_BLOCK // len(self.points))
        parts = [
            self._search_block(
                queries[start : start + size],
                k,
                norms,
                squared_lengths,
                None if limits is None else limits[start : start + size],
            )
            for start in range(0, len(queries), size)
        ]
        distances, indices = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(indices)

    def _search_block(
        self,
        queries: torch.Tensor,
        k: int,
        bank_norms: torch.Tensor,
        squared_lengths: torch.Tensor,
        limits: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.points is not None
        points = self.axes.reduce(queries)
        norms = points.square().sum(dim=1)
        # Squared bounds without |q|^2
        with without_autocast(queries.device):
            squares = torch.addmm(bank_norms, points, self.points.T, alpha=-2)
        if self.smallest is not None:
            squares = torch.maximum(squares, self.smallest - norms[:, None])
        bounds = GroupedBounds(squares)

        # The k-th neighbor is no farther than k promising rows
        promising = bounds.most_promising(k)
        farthest = (queries[:, None] - self.bank[promising]).square().sum(dim=2)
        if self.radii is not None:
            farthest = torch.maximum(farthest, self.radii[promising].square())
        farthest = farthest.amax(dim=1)
        least = farthest if limits is None else torch.where(limits.square() < farthest, limits.square(), farthest)
        row, column = bounds.within(least - norms + rounding_allowance(queries, points, least))
        count = torch.bincount(row, minlength=len(queries))
        none = (count == 0) & (least < farthest)  # within the limit; NaN leaves none, too
        hard = (count > LARGEST_REMAINDER * len(self.bank)) | ((count < k) & ~none)
        easy = ~hard & ~none
        keep = easy[row]
        row, column = row[keep], column[keep]
        size = max(1, DIFFERENCE_BLOCK // queries.shape[1])
        squares = torch.cat(
            [
                (queries[some] - self.bank[others]).square_().sum(dim=1)
                for some, others in zip(row.split(size), column.split(size), strict=True)
            ]
        )
        if self.radii is not None:
            squares = torch.maximum(squares, self.radii[column].square())

        # Sorted by row, then distance, then column: the first k of each row
        order = squares.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        first = F.pad(count[easy].cumsum(dim=0), (1, 0))[:-1]
        found = order[first[:, None] + torch.arange(k)]
        distances, indices = farthest.sqrt()[:, None].repeat(1, k), promising
        distances[easy], indices[easy] = squares[found].sqrt(), column[found]
        if hard.any():
            distances[hard], indices[hard] = nearest_neighbors(
                queries[hard], self.bank, k, norms=squared_lengths, radii=self.radii
            )
        return distances, indices
