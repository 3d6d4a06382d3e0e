# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Nearest neighbours of patches in the memory bank, exact: in plain operations, and pruned for the CPU and in graphs.

Example:
    >>> import torch
    >>> from anomalib_softpatch.components import NearestNeighborSearch
    >>> search = NearestNeighborSearch()
    >>> bank = torch.randn(10_000, 512)
    >>> distances, indices = search(torch.randn(1024, 512), bank)
    >>> distances.shape, indices.shape
    (torch.Size([1024, 1]), torch.Size([1024, 1]))
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.pruning import GROUP_SIZE, GroupedBounds, LeadingAxes
from anomalib_softpatch.components.tracing import is_traced

# Bank rows and queries in one matrix product: bounds memory. Exported graphs, which take any number of queries at once,
# need (queries x BANK_BLOCK) elements, a few times.
BANK_BLOCK = 4096
QUERY_BLOCK = 4096

# Banks of fewer elements are searched as fast without an index
SMALLEST_INDEX = 2**20
# One of so many axes is a leading one, and the share of the variance that they must hold to be of use
REDUCTION = 5
EXPLAINED_VARIANCE = 0.8
# Bank rows from which the axes are estimated
SAMPLE_SIZE = 8192
# Elements of the largest temporary tensors, bounds and differences: small enough for caches
BOUND_BLOCK = 2**23
DIFFERENCE_BLOCK = 2**20
# Share of the bank that a query may be compared with one by one: beyond it a matrix product is faster
LARGEST_REMAINDER = 1 / 64

# In exported graphs, where all shapes but the number of queries are fixed: bank rows in one product of reduced rows,
# the rows of each that are remembered by their bounds, how many of all remembered ones a query is compared with, and
# how many of these at once (bounds memory).
GRAPH_BLOCK = 2048
SHORTLIST = 8
LARGEST_SHORTLIST = 32
GRAPH_STEP = 4


def nearest_neighbors(queries: torch.Tensor, bank: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest rows of the bank by Euclidean distance, exactly, in operations that every export target has.

    Matrix products find the neighbours; the distances come from the differences, so that they keep their digits where
    a query lies close to its neighbour. (Anomalib's PatchCore takes them from the expanded square.)

    Args:
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        k: Number of neighbours, at most m.

    Returns:
        Distances and indices, both of shape ``(n, k)``, nearest first.
    """
    traced = is_traced()
    if not traced and len(queries) > QUERY_BLOCK:
        parts = [nearest_neighbors(part, bank, k) for part in queries.split(QUERY_BLOCK)]
        distances, nearest = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(nearest)
    # |q - b|^2 without |q|^2, which is the same for all b
    scaled, norms = -2 * queries, bank.square().sum(dim=1)
    nearest = torch.zeros_like(queries[:, :1], dtype=torch.long)
    for start in range(0, len(bank), BANK_BLOCK):
        stop = min(start + BANK_BLOCK, len(bank))
        if traced and len(bank) > BANK_BLOCK:
            # Runtimes would work on all blocks at once, and store each of them beside the bank. Rows whose numbers
            # depend on the result of the block before (by the addition of zero) can neither be read early nor copied.
            part = bank[torch.arange(start, stop, device=bank.device) + nearest.amin(dim=(0, 1)).clamp(max=0)]
        else:
            part = bank[start:stop]
        squares = torch.addmm(norms[start:stop], scaled, part.T)
        if k == 1:  # much faster than topk
            value, index = squares.min(dim=1, keepdim=True)
        else:
            value, index = squares.topk(min(k, stop - start), dim=1, largest=False)
        index = index + start
        if start == 0:
            values, nearest = value, index
        elif k == 1:
            closer = value < values
            values, nearest = torch.where(closer, value, values), torch.where(closer, index, nearest)
        else:
            values, best = torch.cat((values, value), dim=1).topk(min(k, stop), dim=1, largest=False)
            nearest = torch.cat((nearest, index), dim=1).gather(1, best)
    distances = (queries[:, None] - bank[nearest]).square().sum(dim=2).sqrt()
    return distances, nearest


class NearestNeighborSearch:
    """Find nearest neighbours with an index of each bank where that is faster: on a CPU, and in exported graphs.

    On a CPU an index is built at the first search, in about the time of two plain ones, and kept while the bank stays
    the same. It adds a fifth to the bank's memory. Copies and pickles leave it out and build their own. A graph gets
    the index of :meth:`in_graphs`, and has the plain search without.
    """

    def __init__(self) -> None:
        self._indexes: dict[tuple, PrunedIndex] = {}
        self._graph_index: PrunedIndex | None = None

    def __call__(self, queries: torch.Tensor, bank: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest rows of the bank; arguments and returns are those of :func:`nearest_neighbors`."""
        if is_traced():
            index = self._graph_index
            if index is not None and k == 1 and bank.shape == index.bank.shape:
                return index.search_in_graph(queries, bank, [(0, len(bank))])[0]
            return nearest_neighbors(queries, bank, k)
        if bank.device.type != "cpu" or not _is_worth_an_index(bank):
            self._indexes.clear()
            return nearest_neighbors(queries, bank, k)
        return self._index(bank).search(queries, k)

    def search_ranges(
        self, queries: torch.Tensor, bank: torch.Tensor, ranges: Sequence[tuple[int, int]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Find the nearest row in each of some ranges of the bank; rows that ranges share are searched once.

        Args:
            queries: Shape ``(n, d)``.
            bank: Shape ``(m, d)``.
            ranges: Rows ``(start, stop)`` of each range, at least one row.

        Returns:
            For each range, distances and indices (rows of the bank), both of shape ``(n, 1)``.
        """
        index = self._graph_index
        if is_traced() and index is not None and bank.shape == index.bank.shape:
            return index.search_in_graph(queries, bank, ranges)
        found = {}
        for start, stop in _disjoint(ranges):
            distances, indices = self(queries, bank[start:stop])
            found[start] = distances, indices + start
        results = []
        for first, last in ranges:
            nearest, *others = (part for start, part in found.items() if first <= start < last)
            for other in others:
                closer = nearest[0] <= other[0]
                nearest = tuple(torch.where(closer, ours, theirs) for ours, theirs in zip(nearest, other, strict=True))
            results.append(nearest)
        return results

    @contextmanager
    def in_graphs(self, bank: torch.Tensor) -> Iterator[None]:
        """Let graphs that are recorded by ``torch.export`` in a block have a pruned search of this bank.

        Only one neighbour is searched that way. The index goes into the graph as constants, a fifth of the bank's size.
        Outside of the block nothing of it is left, so that no graph can have the index of a bank that was replaced.

        Args:
            bank: Shape ``(m, d)``. Banks that are too small for an index are left to the plain search.

        Yields:
            Nothing.
        """
        if _is_worth_an_index(bank):
            index = PrunedIndex(bank.detach().cpu())
            self._graph_index = None if index.points is None else index.to(bank.device)
        try:
            yield
        finally:
            self._graph_index = None

    def _index(self, bank: torch.Tensor) -> "PrunedIndex":
        version = 0 if bank.is_inference() else bank._version
        key = (bank.data_ptr(), bank.shape, bank.stride(), bank.dtype, version)
        if key not in self._indexes:
            # An index holds its bank, so that no other one can come to lie at the same address.
            storage = bank.untyped_storage().data_ptr()
            self._indexes = {
                other: index
                for other, index in self._indexes.items()
                if index.bank.untyped_storage().data_ptr() == storage and other[-1] == version
            }
            self._indexes[key] = PrunedIndex(bank)
        return self._indexes[key]

    def __reduce__(self) -> tuple:
        return type(self), ()


def _is_worth_an_index(bank: torch.Tensor) -> bool:
    return bank.numel() >= SMALLEST_INDEX and bank.dtype in PrunedIndex.DTYPES


def _disjoint(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut ranges where any of them starts or stops, and return the parts that belong to one at least."""
    edges = sorted({edge for pair in ranges for edge in pair})
    return [part for part in pairwise(edges) if any(first <= part[0] < last for first, last in ranges)]


class PrunedIndex:
    """Search a bank by lower bounds of the distances first, and by distances only where the bounds leave a doubt.

    Rows are reduced to a fifth of their length, see :class:`LeadingAxes`.

    Args:
        bank: Shape ``(m, d)``, float32 or float64, on the CPU.

    Attributes:
        bank: The bank.
        points: Reduced bank, padded to whole groups; ``None`` if the variance is spread over too many axes.
        norms: Their squared lengths, see :meth:`_norms`; infinity where there is no row.
    """

    DTYPES = (torch.float32, torch.float64)

    @torch.no_grad()
    def __init__(self, bank: torch.Tensor) -> None:
        self.bank = bank
        self.points: torch.Tensor | None = None
        sample = bank[:: max(1, len(bank) // SAMPLE_SIZE)]
        center = sample.mean(dim=0)
        sample = sample - center
        covariance = (sample.T @ sample).double()
        size = bank.shape[1] // REDUCTION
        # Subspace iteration. Any axes give bounds, so that a few steps will do; an eigendecomposition takes far longer
        # where several processes share the cores.
        axes = torch.randn(bank.shape[1], size, dtype=torch.double, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            axes = torch.linalg.qr(covariance @ axes).Q
        explained = (axes * (covariance @ axes)).sum()
        if not 0 < EXPLAINED_VARIANCE * covariance.trace() <= explained:
            return
        self.axes = LeadingAxes(center, axes.to(bank.dtype))
        points = torch.cat([self.axes.reduce(part) for part in bank.split(BANK_BLOCK)])
        padding = -len(bank) % GROUP_SIZE
        self.points = F.pad(points, (0, 0, 0, padding))
        self.norms = F.pad(self._norms(points), (0, padding), value=torch.inf)

    def _norms(self, points: torch.Tensor) -> torch.Tensor:
        """Return squared lengths, lowered so far that bounds computed from them hold in spite of rounding.

        Sums of d products round d times at most, each relative to the lengths of the rows: |q|^2 + |b|^2 bounds that.
        """
        rounding = 8 * self.bank.shape[1] * torch.finfo(points.dtype).eps
        return points.square().sum(dim=1) * (1 - rounding)

    def to(self, device: torch.device) -> "PrunedIndex":
        """Move all but the bank, and return the index."""
        self.axes = LeadingAxes(self.axes.center.to(device), self.axes.axes.to(device))
        self.points, self.norms = self.points.to(device), self.norms.to(device)
        return self

    @torch.no_grad()
    def search(self, queries: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the nearest rows of the bank; arguments and returns are those of :func:`nearest_neighbors`."""
        if self.points is None or k > len(self.points) // GROUP_SIZE:
            return nearest_neighbors(queries, self.bank, k)
        parts = [self._search(part, k) for part in queries.split(max(1, BOUND_BLOCK // len(self.points)))]
        distances, indices = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(indices)

    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        points = self.axes.reduce(queries)
        # Squared bounds without |q|^2
        bounds = GroupedBounds(torch.addmm(self.norms, points, self.points.T, alpha=-2))

        # The k-th neighbour is no farther than k promising rows
        promising = self.bank[bounds.most_promising(k)]
        farthest = (queries[:, None] - promising).square().sum(dim=2).amax(dim=1)
        row, column = bounds.within(farthest - self._norms(points))
        count = torch.bincount(row, minlength=len(queries))
        hard = (count > LARGEST_REMAINDER * len(self.bank)) | (count < k)  # NaN leaves none
        easy = ~hard
        keep = easy[row]
        row, column = row[keep], column[keep]
        size = max(1, DIFFERENCE_BLOCK // queries.shape[1])
        squares = [
            (queries[some] - self.bank[others]).square_().sum(dim=1)
            for some, others in zip(row.split(size), column.split(size), strict=True)
        ]
        squares = torch.cat(squares)

        # Sorted by row, then distance, then column: the first k of each row
        order = squares.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        first = F.pad(count[easy].cumsum(dim=0), (1, 0))[:-1]
        found = order[first[:, None] + torch.arange(k)]
        distances = queries.new_empty(len(queries), k)
        indices = torch.empty(len(queries), k, dtype=torch.long)
        distances[easy], indices[easy] = squares[found].sqrt(), column[found]
        if hard.any():
            distances[hard], indices[hard] = nearest_neighbors(queries[hard], self.bank, k)
        return distances, indices

    def search_in_graph(
        self, queries: torch.Tensor, bank: torch.Tensor, ranges: Sequence[tuple[int, int]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Find the nearest row in each of some ranges of the bank, in operations that exported graphs run well.

        The lowest bounds of each block of the bank make a shortlist, whose rows are compared in full, the most
        promising first, while a bound is lower than the least distance found. Where that holds for a row that is on no shortlist,
        too, the query goes to the plain search, in a branch that runs only if there is such a query.

        Args:
            queries: Shape ``(n, d)``.
            bank: The bank, as the graph has it, shape ``(m, d)``.
            ranges: Rows ``(start, stop)`` of each range.

        Returns:
            For each range, distances and indices, both of shape ``(n, 1)``; the first one of equal rows.
        """
        points = self.axes.reduce(queries)
        scaled, norms = -2 * points, self._norms(points)[:, None]
        shortlists = {}
        for first, last in _disjoint(ranges):
            for start in range(first, last, GRAPH_BLOCK):
                stop = min(start + GRAPH_BLOCK, last)
                bounds = torch.addmm(self.norms[start:stop], scaled, self.points[start:stop].T)
                lowest, column = bounds.topk(min(SHORTLIST, stop - start), dim=1, largest=False)
                shortlists[start, stop] = lowest + norms, column + start
        results = []
        for first, last in ranges:
            blocks = [block for block in shortlists if first <= block[0] < last]
            bounds, rows = (torch.cat(parts, dim=1) for parts in zip(*(shortlists[b] for b in blocks), strict=True))
            # Bounds of the rows that are on no shortlist are at least these
            rest = [shortlists[start, stop][0][:, -1:] for start, stop in blocks if stop - start > SHORTLIST]
            if bounds.shape[1] > LARGEST_SHORTLIST:
                bounds, order = bounds.topk(LARGEST_SHORTLIST, dim=1, largest=False)
                rest.append(bounds[:, -1:])
            else:
                bounds, order = bounds.sort(dim=1)
            rows = rows.gather(1, order)
            squares, nearest = _nearest_of_shortlist(queries, bank, bounds, rows)
            if rest:
                in_doubt = ~(torch.cat(rest, dim=1).amin(dim=1) > squares)  # NaN, too
                operands = (squares, nearest, in_doubt, queries, bank[first:last])
                squares, nearest = torch.cond(in_doubt.any(), _search_again(first), _keep, operands)
            results.append((squares.sqrt()[:, None], nearest[:, None]))
        return results


def _nearest_of_shortlist(
    queries: torch.Tensor, bank: torch.Tensor, bounds: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distances and rows of the nearest on the shortlists, shape ``(n,)``.

    Args:
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        bounds: Lower bounds of the squared distances, sorted, shape ``(n, s)``.
        rows: The rows of the bank that they belong to, same shape.
    """
    nearest = rows[:, 0]
    squares = (queries - bank[nearest]).square().sum(dim=1)
    step = 1
    start = 1
    while start < rows.shape[1]:
        stop = min(start + step, rows.shape[1])
        (some,) = (bounds[:, start] <= squares).nonzero(as_tuple=True)
        candidates = rows[some, start:stop]
        others = (queries[some, None] - bank[candidates]).square().sum(dim=2)
        square = others.amin(dim=1)
        candidate = torch.where(others == square[:, None], candidates, len(bank)).amin(dim=1)
        known, row = squares[some], nearest[some]
        closer = (square < known) | ((square == known) & (candidate < row))
        squares = squares.index_put((some,), torch.where(closer, square, known))
        nearest = nearest.index_put((some,), torch.where(closer, candidate, row))
        start, step = stop, min(2 * step, GRAPH_STEP)
    return squares, nearest


def _search_again(first: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return the branch of a graph that leaves queries in doubt to the plain search of a bank.

    Args:
        first: Number of the bank's first row.
    """

    def branch(
        squares: torch.Tensor, nearest: torch.Tensor, in_doubt: torch.Tensor, queries: torch.Tensor, bank: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (some,) = in_doubt.nonzero(as_tuple=True)
        distances, rows = nearest_neighbors(queries[some], bank)
        squares = squares.index_put((some,), distances.squeeze(1).square())
        return squares, nearest.index_put((some,), rows.squeeze(1) + first)

    return branch


def _keep(squares: torch.Tensor, nearest: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Branch of a graph that has no query in doubt."""
    return squares.clone(), nearest.clone()
