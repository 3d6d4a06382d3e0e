# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Pruned search for exported graphs: exact, in static shapes and operators that all runtimes have.

See ``docs/pruning.md`` for why it finds what a full search finds.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.nearest_neighbors import (
    BANK_BLOCK,
    ROWS_OF_GROUP,
    SMALLEST_INDEX,
    PrunedIndex,
    combine,
    contains,
    disjoint,
    nearer,
    nearest_neighbors,
)
from anomalib_softpatch.components.pruning import LeadingAxes, rounding_allowance, sufficient_axes
from anomalib_softpatch.components.tracing import without_autocast

# One of so many axes at most is a leading one, so that the index adds a sixth to the bank's size
REDUCTION = 6
# Rows with the lowest bounds that a query is compared with: few at first, more where these leave a doubt
SHORTLISTS = (5, 33)
# Share of the queries in doubt from which the longer shortlist is not worth its time
MANY_IN_DOUBT = 0.5
# Rows from which a shortlist is worth its time
SMALLEST_BANK = 1024


class GraphIndex:
    """Search some ranges of a bank: bounds of all rows, distances to the few that they leave.

    The rows with the lowest bounds make a shortlist for each query. Where the last bound on it exceeds the least
    distance found, no other row can be nearer. Queries for which this is not so get a longer shortlist, and if need be
    go to the plain search, in the same graph: their number is data, so that hard images take longer, and all distances
    are exact. Where ranges overlap, each part of them is searched once.

    Args:
        bank: Shape ``(m, d)``, float32 or float64.
        ranges: Rows ``(start, stop)`` of each range, at least one row.
        axes: What rows are reduced by.

    Attributes:
        blocks: Reduced rows of the bank in blocks, by their first and last row: transposed reduced rows of shape
            ``(a + 1, b)``, and their squared lengths, infinity where the block has no row.
    """

    @torch.no_grad()
    def __init__(self, bank: torch.Tensor, ranges: Sequence[tuple[int, int]], axes: LeadingAxes) -> None:
        self.ranges = tuple(ranges)
        self.axes = axes
        self.blocks: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for first, last in disjoint(self.ranges):
            count = -(-(last - first) // BANK_BLOCK)
            edges = [first + (last - first) * block // count for block in range(count + 1)]
            for start, stop in pairwise(edges):
                points = axes.reduce(bank[start:stop])
                norms = points.square().sum(dim=1)
                padding = -len(points) % ROWS_OF_GROUP
                points = F.pad(points, (0, 0, 0, padding)).T.contiguous()
                self.blocks[start, stop] = points, F.pad(norms, (0, padding), value=torch.inf)

    @classmethod
    def build(cls, bank: torch.Tensor, ranges: Sequence[tuple[int, int]]) -> "GraphIndex | None":
        """Return an index of a bank, or ``None`` where the plain search is as fast."""
        dtypes = PrunedIndex.DTYPES
        if bank.numel() < SMALLEST_INDEX or len(bank) < SMALLEST_BANK or bank.dtype not in dtypes:
            return None
        axes = sufficient_axes(bank.detach(), bank.shape[1] // REDUCTION)
        return None if axes is None else cls(bank.detach(), ranges, axes)

    def search(self, queries: torch.Tensor, bank: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Find the nearest row in each range.

        Args:
            queries: Shape ``(n, d)``.
            bank: The bank, shape ``(m, d)``.

        Returns:
            For each range, distances and rows of the bank, both of shape ``(n,)``; the first one of rows that rounding
            leaves equally near.
        """
        norms = bank.square().sum(dim=1)
        bank = _no_constant(bank, queries)
        found, in_doubt = self._by_shortlists(queries, bank, SHORTLISTS[0])
        # A longer shortlist helps where a few queries are harder than the others. Where most are, it leaves many, too.
        some = _rows_of(in_doubt & (in_doubt.to(norms.dtype).mean() <= MANY_IN_DOUBT))
        longer, still = self._by_shortlists(queries.index_select(0, some), bank, SHORTLISTS[1])
        found = _replace_farther(found, some, longer)
        in_doubt = in_doubt.index_put((some,), still)
        some = _rows_of(in_doubt)
        rest = self._by_plain_search(queries.index_select(0, some), bank, norms, in_doubt.any())
        return _replace_farther(found, some, rest)

    def _by_shortlists(
        self, queries: torch.Tensor, bank: torch.Tensor, size: int
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Return the nearest rows on the shortlists, as :meth:`search` does, and whether others may be nearer.

        Args:
            queries: Shape ``(n, d)``.
            bank: The bank, shape ``(m, d)``.
            size: Rows on a shortlist.
        """
        points = self.axes.reduce(queries)
        norms = points.square().sum(dim=1)
        shortlists = self._shortlists(-2 * points, size)  # bounds without |q|^2
        nearest = {part: _nearest_of_shortlist(queries, bank, rows) for part, (_, rows) in shortlists.items()}
        found = []
        in_doubt = torch.zeros_like(norms, dtype=torch.bool)
        for pair, (distances, rows) in zip(self.ranges, combine(nearest, self.ranges), strict=True):
            squares = distances.square()
            limits = squares - norms + rounding_allowance(queries, points, squares)
            for part, (bounds, _) in shortlists.items():
                if contains(pair, part):
                    in_doubt = in_doubt | ~(bounds[:, -1] > limits)  # NaN, too
            found.append((distances, rows))
        return found, in_doubt

    def _shortlists(self, scaled: torch.Tensor, size: int) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
        """Return the lowest bounds in each disjoint range, sorted, and the rows that they belong to.

        Args:
            scaled: Reduced queries times -2, shape ``(n, a + 1)``.
            size: Rows on a shortlist.
        """
        found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        last_rows: torch.Tensor | None = None
        for part in disjoint(self.ranges):
            parts: list[tuple[torch.Tensor, torch.Tensor]] = []
            for (start, stop), (points, norms) in self.blocks.items():
                if not contains(part, (start, stop)):
                    continue
                # As in the plain search: a product that depends on the block before cannot be computed early
                rows = scaled if last_rows is None else scaled + last_rows.amin(dim=(0, 1)).clamp(max=0)
                with without_autocast(scaled.device):
                    bounds = torch.addmm(norms, rows, points)
                parts = [_merge([*parts, _lowest(bounds, start, stop, size)])]
                last_rows = parts[0][1]
            found[part] = parts[0]
        return found

    def _by_plain_search(
        self, queries: torch.Tensor, bank: torch.Tensor, norms: torch.Tensor, needed: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the nearest rows by the plain search, or, where that is not needed, by a search of a few rows."""
        found = {}
        for start, stop in disjoint(self.ranges):
            distances, rows = nearest_neighbors(queries, bank, within=(start, stop), needed=needed, norms=norms)
            found[start, stop] = distances.squeeze(1), rows.squeeze(1)
        return combine(found, self.ranges)


def _no_constant(bank: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return the bank as what runtimes do not take for a constant, and do not copy.

    OpenVINO stores a constant once for each operation that gathers rows of it, and these are dozens. So they gather
    from a reshaped one. Its number of rows is that of the bank and depends on the queries, by the addition of zero.
    """
    if not torch.onnx.is_in_onnx_export():
        return bank
    rows = (queries[:1, :1] > queries[:1, :1]).flatten().long() + len(bank)
    shape = torch.cat((rows, torch.full_like(rows, bank.shape[1])))
    return torch.onnx.ops.symbolic("Reshape", (bank, shape), dtype=bank.dtype, shape=bank.shape)


def _rows_of(mask: torch.Tensor) -> torch.Tensor:
    """Return which elements are true, and the first one, since runtimes do not all bear tensors without elements."""
    return F.pad(mask.nonzero().squeeze(1), (1, 0))


def _replace_farther(
    found: Sequence[tuple[torch.Tensor, torch.Tensor]],
    some: torch.Tensor,
    others: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return distances and rows of each range with the nearer ones that another search has found for some queries."""
    replaced = []
    for (distances, rows), other in zip(found, others, strict=True):
        new = nearer((distances.index_select(0, some), rows.index_select(0, some)), other)
        replaced.append((distances.index_put((some,), new[0]), rows.index_put((some,), new[1])))
    return replaced


def _lowest(bounds: torch.Tensor, start: int, stop: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest bounds of a block of the bank, and the rows that they belong to.

    The lowest ones are all in the groups whose smallest bounds are the lowest.

    Args:
        bounds: Shape ``(n, b)``; b is a multiple of ``ROWS_OF_GROUP``.
        start: The block's first row.
        stop: The row after its last.
        size: How many.
    """
    count = bounds.shape[1] // ROWS_OF_GROUP
    # A group is one of so many neighbouring columns, since minima over the middle axis are those of whole vectors
    groups = bounds.view(-1, ROWS_OF_GROUP, count)
    best = groups.amin(dim=1).topk(min(size, count), dim=1, largest=False, sorted=False).indices
    columns = torch.arange(ROWS_OF_GROUP, device=bounds.device)[:, None] * count + best[:, None]
    lowest = bounds.gather(1, columns.flatten(1))
    lowest, order = lowest.topk(min(size, lowest.shape[1]), dim=1, largest=False)
    rows = best.gather(1, order % best.shape[1]) + order // best.shape[1] * count + start
    return lowest, rows.clamp(max=stop - 1)  # where there is no row, the last one


def _merge(shortlists: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge sorted shortlists, bounds and rows, into one."""
    if len(shortlists) == 1:
        return shortlists[0]
    bounds, rows = (torch.cat(parts, dim=1) for parts in zip(*shortlists, strict=True))
    bounds, order = bounds.topk(shortlists[0][0].shape[1], dim=1, largest=False)
    return bounds, rows.gather(1, order)


def _nearest_of_shortlist(
    queries: torch.Tensor, bank: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances to the nearest rows of the bank on the shortlists, and these; both of shape ``(n,)``.

    Args:
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        rows: Rows of the bank, shape ``(n, s)``. The last one does not count: its bound is that of the other rows.
    """
    rows, negated = rows[:, :-1], -queries
    # One after the other, which bounds memory
    found = [torch.linalg.norm(bank.index_select(0, candidates) + negated, dim=1) for candidates in rows.unbind(dim=1)]
    distances = torch.stack(found, dim=1)
    least = distances.amin(dim=1)
    return least, torch.where(distances == least[:, None], rows, bank.shape[0] - 1).amin(dim=1)
