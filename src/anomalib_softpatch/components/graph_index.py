# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Pruned search for exported graphs: exact, in static shapes and operators that all runtimes have.

See ``docs/pruning.md`` for why it finds what a full search finds.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.nearest_neighbors import BANK_BLOCK, SMALLEST_INDEX, PrunedIndex, nearest_neighbors
from anomalib_softpatch.components.pruning import LeadingAxes, leading_axes
from anomalib_softpatch.components.tracing import without_autocast

# One of so many axes is a leading one. Runtimes take about as long for the bounds as for all the rest then, and the
# index adds a sixth to the bank's size.
REDUCTION = 6
# Rows of the bank with the lowest bounds, which a query is compared with
SHORTLIST = 16
# Rows of the bank whose smallest bound stands for them at first, so that there is less to sort; one group fills a list
GROUP_SIZE = 16
# Rows from which a shortlist is worth its time
SMALLEST_BANK = 64 * SHORTLIST


class GraphIndex:
    """Search some ranges of a bank: bounds of all rows, distances to the few that they leave.

    The rows with the lowest bounds make a shortlist for each query and range. Where the last bound on it exceeds the
    least distance found, no other row can be nearer. Queries for which this is not so go to the plain search, in the
    same graph: their number is data, so that hard images take longer, and all distances are exact.

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
        for first, last in _disjoint(self.ranges):
            count = -(-(last - first) // BANK_BLOCK)
            edges = [first + (last - first) * block // count for block in range(count + 1)]
            for start, stop in pairwise(edges):
                points = axes.reduce(bank[start:stop])
                norms = points.square().sum(dim=1)
                padding = -len(points) % GROUP_SIZE
                points = F.pad(points, (0, 0, 0, padding)).T.contiguous()
                self.blocks[start, stop] = points, F.pad(norms, (0, padding), value=torch.inf)

    @classmethod
    def build(cls, bank: torch.Tensor, ranges: Sequence[tuple[int, int]]) -> "GraphIndex | None":
        """Return an index of a bank, or ``None`` where the plain search is as fast."""
        dtypes = PrunedIndex.DTYPES
        if bank.numel() < SMALLEST_INDEX or len(bank) < SMALLEST_BANK or bank.dtype not in dtypes:
            return None
        axes = leading_axes(bank.detach(), bank.shape[1] // REDUCTION)
        return None if axes is None else cls(bank.detach(), ranges, axes)

    def search(self, queries: torch.Tensor, bank: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Find the nearest row in each range.

        Args:
            queries: Shape ``(n, d)``.
            bank: The bank, shape ``(m, d)``.

        Returns:
            For each range, distances and rows of the bank, both of shape ``(n,)``; the first one of equal rows.
        """
        points = self.axes.reduce(queries)
        norms = points.square().sum(dim=1)
        precision = torch.finfo(queries.dtype).eps
        shortlists = self._shortlists(-2 * points)  # bounds without |q|^2
        results = []
        in_doubt = torch.zeros_like(norms, dtype=torch.bool)
        for first, last in self.ranges:
            bounds, rows = _merge([found for (start, _), found in shortlists.items() if first <= start < last])
            squares, nearest = _nearest_of_shortlist(queries, bank, rows)
            distances = squares.sqrt()
            # What rounding can do to the distances, and to the bounds of rows that are nearer than the one found
            rounding = precision * (queries.shape[1] + 8) * squares
            rounding = rounding + precision * (points.shape[1] + 64) * (2 * norms.sqrt() + distances).square()
            in_doubt = in_doubt | ~(bounds[:, -1] > squares - norms + rounding)  # NaN, too
            results.append((distances, nearest))
        # One query at least, since runtimes do not all bear tensors without elements
        some = F.pad(in_doubt.nonzero().squeeze(1), (1, 0))
        return [
            (distances.index_put((some,), found[0]), nearest.index_put((some,), found[1]))
            for (distances, nearest), found in zip(results, self._search_again(queries, bank, some), strict=True)
        ]

    def _shortlists(self, scaled: torch.Tensor) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
        """Return the lowest bounds in each disjoint range, sorted, and the rows that they belong to.

        Args:
            scaled: Reduced queries times -2, shape ``(n, a + 1)``.
        """
        found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        last_rows: torch.Tensor | None = None
        for first, last in _disjoint(self.ranges):
            parts: list[tuple[torch.Tensor, torch.Tensor]] = []
            for (start, stop), (points, norms) in self.blocks.items():
                if not first <= start < last:
                    continue
                # As in the plain search: a product that depends on the block before cannot be computed early
                rows = scaled if last_rows is None else scaled + last_rows.amin(dim=(0, 1)).clamp(max=0)
                with without_autocast(scaled.device):
                    bounds = torch.addmm(norms, rows, points)
                parts = [_merge([*parts, _lowest(bounds, start, stop)])]
                last_rows = parts[0][1]
            found[first, last] = parts[0]
        return found

    def _search_again(
        self, queries: torch.Tensor, bank: torch.Tensor, some: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return distances and rows of the nearest in each range for some queries, by the plain search."""
        queries = queries.index_select(0, some)
        found = {}
        for start, stop in _disjoint(self.ranges):
            distances, rows = nearest_neighbors(queries, bank, within=(start, stop))
            found[start] = distances.squeeze(1), rows.squeeze(1)
        results = []
        for first, last in self.ranges:
            nearest, *others = (part for start, part in found.items() if first <= start < last)
            for other in others:
                closer = nearest[0] <= other[0]
                nearest = torch.where(closer, nearest[0], other[0]), torch.where(closer, nearest[1], other[1])
            results.append(nearest)
        return results


def _disjoint(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut ranges where any of them starts or stops, and return the parts that belong to one at least."""
    edges = sorted({edge for pair in ranges for edge in pair})
    return [part for part in pairwise(edges) if any(first <= part[0] < last for first, last in ranges)]


def _lowest(bounds: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest bounds of a block of the bank, and the rows that they belong to.

    The lowest ones are all in the groups whose smallest bounds are the lowest.

    Args:
        bounds: Shape ``(n, b)``; b is a multiple of ``GROUP_SIZE``.
        start: The block's first row.
        stop: The row after its last.
    """
    count = bounds.shape[1] // GROUP_SIZE
    # A group is one of so many neighbouring columns, since minima over the middle axis are those of whole vectors
    groups = bounds.view(-1, GROUP_SIZE, count)
    best = groups.amin(dim=1).topk(min(SHORTLIST, count), dim=1, largest=False, sorted=False).indices
    lowest = groups.gather(2, best[:, None].expand(-1, GROUP_SIZE, -1)).flatten(1)
    lowest, order = lowest.topk(SHORTLIST, dim=1, largest=False)
    rows = best.gather(1, order % best.shape[1]) + order // best.shape[1] * count + start
    return lowest, rows.clamp(max=stop - 1)  # where there is no row, the last one


def _merge(shortlists: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge sorted shortlists, bounds and rows, into one."""
    if len(shortlists) == 1:
        return shortlists[0]
    bounds, rows = (torch.cat(parts, dim=1) for parts in zip(*shortlists, strict=True))
    bounds, order = bounds.topk(SHORTLIST, dim=1, largest=False)
    return bounds, rows.gather(1, order)


def _nearest_of_shortlist(
    queries: torch.Tensor, bank: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distances to the nearest rows of the bank on the shortlists, and these; both of shape ``(n,)``.

    Args:
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        rows: Rows of the bank, shape ``(n, s)``.
    """
    squares, nearest = None, rows[:, 0]
    for candidates in rows.unbind(dim=1):  # one after the other: so few that bounds on the way would not pay
        # A product, since some runtimes raise to powers slowly
        differences = queries - bank.index_select(0, candidates)
        others = (differences * differences).sum(dim=1)
        if squares is None:
            squares = others
            continue
        closer = (others < squares) | ((others == squares) & (candidates < nearest))
        squares, nearest = torch.where(closer, others, squares), torch.where(closer, candidates, nearest)
    assert squares is not None
    return squares, nearest
