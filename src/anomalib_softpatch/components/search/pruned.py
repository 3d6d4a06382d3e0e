# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Pruned search on a CPU: exact, and several times faster than the plain one. See ``docs/pruning.md`` for why."""

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.search.bank import Nearest
from anomalib_softpatch.components.search.bounds import (
    STRIP,
    BoundsInStrips,
    rounding_allowance,
    sufficient_axes,
)
from anomalib_softpatch.components.search.plain import BANK_BLOCK, nearest_neighbors, squared_lengths
from anomalib_softpatch.components.tracing import without_autocast

# One of so many axes at most is a leading one
REDUCTION = 5
# Elements of the largest temporary tensors, bounds and differences: small enough for caches
BOUND_BLOCK = 2**23
DIFFERENCE_BLOCK = 2**20
# Share of the rows that a query may be compared with one by one: beyond it a matrix product is faster
LARGEST_REMAINDER = 1 / 64


class PrunedIndex:
    """Search rows by lower bounds of the distances first, and by distances only where the bounds leave a doubt.

    Rows are reduced to a fifth of their length or less, see :class:`LeadingAxes`.

    Args:
        features: Shape ``(m, d)``, float32 or float64, on the CPU.
        radii: Support radii of the rows, shape ``(m,)``. Default: none.

    Attributes:
        points: Reduced rows, padded to whole strips; ``None`` if bounds would rule out too little.
    """

    DTYPES = (torch.float32, torch.float64)

    @torch.no_grad()
    def __init__(self, features: torch.Tensor, radii: torch.Tensor | None = None) -> None:
        self.features = features
        self.radii = radii
        self.squared_lengths = squared_lengths(features)
        self.points: torch.Tensor | None = None
        axes = sufficient_axes(features, features.shape[1] // REDUCTION)
        if axes is None:
            return
        self.axes = axes
        points = torch.cat([self.axes.reduce(part) for part in features.split(BANK_BLOCK)])
        norms = points.square().sum(dim=1)
        padding = -len(features) % STRIP
        self.points = F.pad(points, (0, 0, 0, padding))
        self.norms = F.pad(norms, (0, padding), value=torch.inf)
        self.smallest = None if radii is None else F.pad(radii.square(), (0, padding))

    @torch.no_grad()
    def nearest(
        self, queries: torch.Tensor, left_out: torch.Tensor | None = None, limits: torch.Tensor | None = None
    ) -> Nearest:
        """Find the nearest row.

        Args:
            queries: Shape ``(n, d)``.
            left_out: Rows that do not count, boolean of shape ``(m,)``, not all. Default: all count.
            limits: Distances of shape ``(n,)``. Where all rows are farther, any of them may be named, with its
                distance. Default: none.
        """
        squared_lengths = self.squared_lengths
        if left_out is not None:  # an infinite length is never within a limit
            squared_lengths = squared_lengths.masked_fill(left_out, torch.inf)
        if self.points is None:
            return self._nearest_plainly(queries, squared_lengths)
        norms = self.norms
        if left_out is not None:
            norms = norms.masked_fill(F.pad(left_out, (0, len(norms) - len(left_out))), torch.inf)
        size = max(1, BOUND_BLOCK // len(self.points))
        parts = [
            self._nearest_of_block(
                queries[start : start + size],
                self.points,
                norms,
                squared_lengths,
                None if limits is None else limits[start : start + size],
            )
            for start in range(0, len(queries), size)
        ]
        distances, indices = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(indices)

    def _nearest_plainly(self, queries: torch.Tensor, squared_lengths: torch.Tensor) -> Nearest:
        distances, indices = nearest_neighbors(queries, self.features, norms=squared_lengths, radii=self.radii)
        return distances.squeeze(1), indices.squeeze(1)

    def _nearest_of_block(
        self,
        queries: torch.Tensor,
        bank_points: torch.Tensor,
        bank_norms: torch.Tensor,
        squared_lengths: torch.Tensor,
        limits: torch.Tensor | None,
    ) -> Nearest:
        points = self.axes.reduce(queries)
        norms = points.square().sum(dim=1)
        # Squared bounds without |q|^2
        with without_autocast(queries.device):
            squares = torch.addmm(bank_norms, points, bank_points.T, alpha=-2)
        if self.smallest is not None:
            squares = torch.maximum(squares, self.smallest - norms[:, None])
        bounds = BoundsInStrips(squares)

        # The nearest row is no farther than a promising one
        promising = bounds.most_promising()
        farthest = self._squares(queries, promising)
        least = farthest if limits is None else torch.where(limits.square() < farthest, limits.square(), farthest)
        row, column = bounds.within(least - norms + rounding_allowance(queries, points, least))
        count = torch.bincount(row, minlength=len(queries))
        none = (count == 0) & (least < farthest)  # within the limit; NaN leaves none, too
        hard = (count > LARGEST_REMAINDER * len(self.features)) | ((count == 0) & ~none)
        easy = ~hard & ~none
        keep = easy[row]
        row, column = row[keep], column[keep]
        size = max(1, DIFFERENCE_BLOCK // queries.shape[1])
        squares = torch.cat(
            [
                self._squares(queries[some], others)
                for some, others in zip(row.split(size), column.split(size), strict=True)
            ]
        )
        # Sorted by row, then distance, then column: the first of each row
        order = squares.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        found = order[F.pad(count[easy].cumsum(dim=0), (1, 0))[:-1]]
        distances, indices = farthest.sqrt(), promising
        distances[easy], indices[easy] = squares[found].sqrt(), column[found]
        if hard.any():
            distances[hard], indices[hard] = self._nearest_plainly(queries[hard], squared_lengths)
        return distances, indices

    def _squares(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the squared distances of queries to one row each, shape ``(n,)``."""
        squares = (queries - self.features[rows]).square_().sum(dim=1)
        return squares if self.radii is None else torch.maximum(squares, self.radii[rows].square())
