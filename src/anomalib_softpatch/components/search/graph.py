# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Pruned search for exported graphs: exact, with static shapes and operators that all runtimes have.

``docs/pruning.md`` explains why it finds the same rows as a full search.
"""

from copy import copy
from itertools import pairwise
from typing import TypeAlias

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.search.bank import MemoryBank, Nearest, Rows, nearer, put, select
from anomalib_softpatch.components.search.bounds import LeadingAxes, rounding_allowance, sufficient_axes
from anomalib_softpatch.components.search.exact import SMALLEST_INDEX, PrunedIndex
from anomalib_softpatch.components.search.plain import BANK_BLOCK, nearest_neighbors
from anomalib_softpatch.components.tracing import rows_of, without_autocast

# At most one of this many axes is a leading one, so that the index adds a sixth to the size of the bank
REDUCTION = 6
# Rows with the lowest bounds that a query is compared with: few at first, more if these leave it in doubt
SHORTLISTS = (5, 33)
# Largest share of queries in doubt for which the longer shortlist is worth its time
MANY_IN_DOUBT = 0.5
# Smallest number of rows for which a shortlist is worth its time
SMALLEST_BANK = 1024
# Rows of a comb: columns of a matrix at equal distances, so that minima are those of whole vectors
TEETH = 16

Block: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class GraphSearch:
    """Search a bank in a graph: bounds of all rows, distances to the few that the bounds leave.

    The rows with the lowest bounds are the shortlist of a query. If its last bound exceeds the smallest distance found,
    no other row can be nearer. Other queries get a longer shortlist and, if necessary, the plain search in the same
    graph. Their number depends on the data, so hard images take longer, but all distances are exact. Among rows that
    are equally near after rounding, the first one is returned.

    Args:
        bank: The memory bank, float32 or float64.
        axes: Axes that rows are reduced to.

    Attributes:
        blocks: For each part, its blocks of rows by their range ``(start, stop)``: transposed reduced rows of shape
            ``(a + 1, b)``; their squared lengths, infinity where the block has no row; and their squared radii.
    """

    norms: torch.Tensor

    @torch.no_grad()
    def __init__(self, bank: MemoryBank, axes: LeadingAxes) -> None:
        self.axes = axes
        self.features, self.radii = bank.features, bank.radii
        self.blocks: dict[Rows, dict[Rows, Block]] = {}
        for part in bank.parts:
            size = part[1] - part[0]
            count = -(-size // BANK_BLOCK)
            edges = [part[0] + size * block // count for block in range(count + 1)]
            self.blocks[part] = {rows: self._block(slice(*rows)) for rows in pairwise(edges)}

    def _block(self, rows: slice) -> Block:
        points = self.axes.reduce(self.features[rows])
        norms = points.square().sum(dim=1)
        padding = -len(points) % TEETH
        points = F.pad(points, (0, 0, 0, padding)).T.contiguous()
        smallest = None if self.radii is None else F.pad(self.radii[rows].square(), (0, padding))
        return points, F.pad(norms, (0, padding), value=torch.inf), smallest

    @classmethod
    def build(cls, bank: MemoryBank) -> "GraphSearch | None":
        """Return a search of a bank; ``None`` if the plain search is as fast."""
        rows, columns = bank.features.shape
        if rows * columns < SMALLEST_INDEX or rows < SMALLEST_BANK or bank.features.dtype not in PrunedIndex.DTYPES:
            return None
        axes = sufficient_axes(bank.features, columns // REDUCTION)
        return None if axes is None else cls(bank, axes)

    def in_graph(self, features: torch.Tensor, queries: torch.Tensor) -> "GraphSearch":
        """Return the search for the graph that is being recorded.

        Args:
            features: The patches of the bank in the graph, shape ``(m, d)``.
            queries: All queries of the graph, shape ``(n, d)``.
        """
        search = copy(self)
        search.features, search.norms = _no_constant(features, queries), features.square().sum(dim=1)
        return search

    def nearest(self, queries: torch.Tensor, part: Rows, known: Nearest | None = None) -> Nearest:
        """Find the nearest row of a part of the bank; see :meth:`Search.nearest`."""
        found, in_doubt = self._by_shortlist(queries, part, known, SHORTLISTS[0])
        # A longer shortlist helps if a few queries are harder than the others. If most are, it leaves many in doubt
        some = rows_of(in_doubt & (in_doubt.to(self.norms.dtype).mean() <= MANY_IN_DOUBT))
        longer, still = self._by_shortlist(queries.index_select(0, some), part, select(found, some), SHORTLISTS[1])
        found, in_doubt = put(found, some, longer), in_doubt.index_put((some,), still)
        some = rows_of(in_doubt)
        # Where this is not needed, it searches only a few rows
        distances, rows = nearest_neighbors(
            queries.index_select(0, some),
            self.features,
            within=part,
            needed=in_doubt.any(),
            norms=self.norms,
            radii=self.radii,
        )
        return put(found, some, nearer(select(found, some), (distances.squeeze(1), rows.squeeze(1))))

    def _by_shortlist(
        self, queries: torch.Tensor, part: Rows, known: Nearest | None, size: int
    ) -> tuple[Nearest, torch.Tensor]:
        """Return the nearest of known and of shortlisted rows, and which queries are in doubt: others may be nearer."""
        points = self.axes.reduce(queries)
        lengths = points.square().sum(dim=1)
        bounds, rows = self._shortlist(-2 * points, lengths, part, size, known)  # bounds without |q|^2
        found = nearer(known, self._nearest_of_shortlist(queries, rows))
        squares = found[0].square()
        limits = squares - lengths + rounding_allowance(queries, points, squares)
        return found, ~(bounds[:, -1] > limits)  # NaN, too

    def _shortlist(
        self,
        scaled: torch.Tensor,  # reduced queries times -2
        lengths: torch.Tensor,  # squared, of the reduced queries
        part: Rows,
        size: int,
        known: Nearest | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lowest bounds in a part, sorted, and the rows that they belong to, both of shape ``(n, size)``."""
        shortlist: tuple[torch.Tensor, torch.Tensor] | None = None
        before = None if known is None else known[1][:, None]
        for (start, stop), (points, norms, smallest) in self.blocks[part].items():
            # As in the plain search: a product that depends on the previous result cannot be computed early
            rows = scaled if before is None else scaled + before.amin(dim=(0, 1)).clamp(max=0)
            with without_autocast(scaled.device):
                bounds = torch.addmm(norms, rows, points)
            if smallest is not None:
                bounds = torch.maximum(bounds, smallest - lengths[:, None])
            lowest = _lowest(bounds, start, stop, size)
            if shortlist is not None:
                bounds, rows = (torch.cat(pair, dim=1) for pair in zip(shortlist, lowest, strict=True))
                bounds, order = bounds.topk(shortlist[0].shape[1], dim=1, largest=False)
                lowest = bounds, rows.gather(1, order)
            shortlist, before = lowest, lowest[1]
        assert shortlist is not None  # no part is empty
        return shortlist

    def _nearest_of_shortlist(self, queries: torch.Tensor, rows: torch.Tensor) -> Nearest:
        """Return the nearest rows on the shortlists without their last ones, whose bounds stand for all other rows."""
        rows, negated = rows[:, :-1], -queries
        # One after the other, to limit memory
        found = [
            torch.linalg.norm(self.features.index_select(0, candidates) + negated, dim=1)
            for candidates in rows.unbind(dim=1)
        ]
        distances = torch.stack(found, dim=1)
        if self.radii is not None:
            distances = torch.maximum(distances, self.radii[rows])
        least = distances.amin(dim=1)
        return least, torch.where(distances == least[:, None], rows, self.features.shape[0] - 1).amin(dim=1)


def _no_constant(bank: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return the bank in a form that runtimes do not treat as a constant, and so do not copy."""
    if not torch.onnx.is_in_onnx_export():
        return bank
    # OpenVINO stores a copy of a constant for each of the dozens of operations that gather rows from it. So they gather
    # from a reshaped bank, whose number of rows depends on the queries, by adding zero.
    rows = (queries[:1, :1] > queries[:1, :1]).flatten().long() + len(bank)
    shape = torch.cat((rows, torch.full_like(rows, bank.shape[1])))
    return torch.onnx.ops.symbolic("Reshape", (bank, shape), dtype=bank.dtype, shape=bank.shape)


def _lowest(bounds: torch.Tensor, start: int, stop: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest bounds of a block of the bank, and the rows that they belong to."""
    # The lowest bounds are all on the combs whose smallest bounds are the lowest
    count = bounds.shape[1] // TEETH
    combs = bounds.view(-1, TEETH, count)
    best = combs.amin(dim=1).topk(min(size, count), dim=1, largest=False, sorted=False).indices
    columns = torch.arange(TEETH, device=bounds.device)[:, None] * count + best[:, None]
    lowest = bounds.gather(1, columns.flatten(1))
    lowest, order = lowest.topk(min(size, lowest.shape[1]), dim=1, largest=False)
    rows = best.gather(1, order % best.shape[1]) + order // best.shape[1] * count + start
    return lowest, rows.clamp(max=stop - 1)  # where there is no row, the last one
