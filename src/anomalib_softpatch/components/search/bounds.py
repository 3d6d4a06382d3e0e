# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Lower bounds of distances, from which most pairs of rows need not be compared in full.

Features of images vary along few of their axes. Rows reduced to their coordinates on the leading ones and the length
of the rest are short, and never farther apart than the rows themselves.
"""

import torch

from anomalib_softpatch.components.tracing import without_autocast

# Rows from which leading axes are estimated, and the share of the variance that they must hold to be of use
SAMPLE_SIZE = 8192
EXPLAINED_VARIANCE = 0.8
# Rows whose nearest others are looked for, to learn how far apart neighbors are; variances along the other axes, as
# shares of the squared distance of neighbors: where more axes would take longer than they save, and where most rows
# would have too many others within their bounds
QUERY_SAMPLE_SIZE = 128
NEGLIGIBLE_REST = 0.03
LARGEST_REST = 0.1
# Neighboring rows of the set that are ruled out together where the smallest of their bounds is too large
STRIP = 64


class LeadingAxes:
    """Reduce rows to their coordinates on some axes and the length of the rest.

    Two rows' rests are at least as far apart as their lengths (triangle inequality), so that reduced rows are never
    farther apart than the rows. Any orthonormal axes will do; those of the largest variance give the best bounds.

    Args:
        center: Point that becomes the origin, which keeps digits in expanded distances, shape ``(d,)``.
        axes: Orthonormal axes in the columns, shape ``(d, a)``, of the type to compute in.
    """

    def __init__(self, center: torch.Tensor, axes: torch.Tensor) -> None:
        self.center = center.to(axes.dtype)
        self.axes = axes

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of shape ``(n, d)`` reduced to shape ``(n, a + 1)``, of the type of the axes."""
        rows = rows.to(self.axes.dtype) - self.center
        with without_autocast(rows.device):
            leading = rows @ self.axes
            rest = torch.linalg.norm(torch.addmm(rows, leading, self.axes.T, alpha=-1), dim=1, keepdim=True)
        return torch.cat((leading, rest), dim=1)


def leading_axes(rows: torch.Tensor, count: int) -> LeadingAxes | None:
    """Estimate axes along which rows vary most; ``None`` if they hold too little of the variance to be of use.

    Args:
        rows: Shape ``(m, d)``.
        count: How many axes, less than d.
    """
    if count < 1:
        return None
    sample = sample_rows(rows)
    center = sample.mean(dim=0)
    sample = sample - center
    with without_autocast(rows.device):
        covariance = (sample.T @ sample).double()
    # Subspace iteration. Any axes give bounds, so that a few steps will do; an eigendecomposition takes far longer
    # where several processes share the cores.
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(rows.shape[1], count, dtype=torch.double, generator=generator).to(rows.device)
    for _ in range(3):
        axes = torch.linalg.qr(covariance @ axes).Q
    explained = (axes * (covariance @ axes)).sum()
    if not 0 < EXPLAINED_VARIANCE * covariance.trace() <= explained:
        return None
    return LeadingAxes(center, axes.to(rows.dtype))


@torch.no_grad()
def sufficient_axes(rows: torch.Tensor, most: int) -> LeadingAxes | None:
    """Estimate leading axes of a set of rows, as few as suffice for the search of the nearest row.

    A bound falls short of the squared distance of independent rows by twice the variance along the other axes at most,
    on average. That is to be little of the squared distance between neighbors, however small a share of the whole
    variance either of them is.

    Args:
        rows: Shape ``(m, d)``.
        most: How many axes at most, less than d.

    Returns:
        The axes, of the rows' type; ``None`` if bounds by ``most`` axes rule out too little to be of use.
    """
    axes = leading_axes(rows, most)
    if axes is None:
        return None
    queries = rows[:: max(1, len(rows) // QUERY_SAMPLE_SIZE)] - axes.center
    with without_autocast(rows.device):
        distances = torch.cat([torch.cdist(queries, part - axes.center) for part in rows.split(SAMPLE_SIZE)], dim=1)
    distances = distances.topk(2, dim=1, largest=False).values[:, 1]  # the nearest is the row itself
    variances = axes.reduce(sample_rows(rows)).square().mean(dim=0)  # the last one is that of the rest
    rests = variances.flip(0).cumsum(dim=0).flip(0)[1:]
    neighbors = distances.median().square()
    if rests[-1] > LARGEST_REST * neighbors:
        return None
    count = 1 + int((rests[:-1] > NEGLIGIBLE_REST * neighbors).sum())
    return LeadingAxes(axes.center, axes.axes[:, :count].contiguous())


def rounding_allowance(queries: torch.Tensor, reduced: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return what rounding can do to squared distances and to the bounds of rows that are nearer; see docs/pruning.md.

    Args:
        queries: Shape ``(n, d)``.
        reduced: The same reduced, shape ``(n, a + 1)``.
        squares: Squared distances, one of each query, shape ``(n,)``.
    """
    precision = torch.finfo(queries.dtype).eps
    lengths = 2 * reduced.square().sum(dim=1).sqrt() + squares.sqrt()
    return precision * ((queries.shape[1] + 8) * squares + (reduced.shape[1] + 64) * lengths.square())


def sample_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows from which leading axes, and with them the center, are estimated."""
    return rows[:: max(1, len(rows) // SAMPLE_SIZE)]


class BoundsInStrips:
    """Lower bounds of the squared distances of some rows to the rows of a set, in strips of the set's rows.

    Args:
        bounds: Shape ``(n, m)``, m divisible by ``STRIP``: infinity where the set has no row. A term that is the same
            for all of a row's bounds may be left out if it is left out of the limits, too.
    """

    def __init__(self, bounds: torch.Tensor) -> None:
        self.bounds = bounds.view(len(bounds), -1, STRIP)
        self.smallest = self.bounds.amin(dim=2)

    def most_promising(self) -> torch.Tensor:
        """Return the column of the smallest bound of each row, shape ``(n,)``."""
        strips = self.smallest.topk(1, dim=1, largest=False).indices
        places = self.bounds.gather(1, strips[..., None].expand(-1, -1, STRIP)).argmin(dim=2)
        return (strips * STRIP + places).squeeze(1)

    def rule_out(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Let some pairs, each by its row and column, not be within any finite limit; they may stay promising."""
        self.bounds[rows, columns // STRIP, columns % STRIP] = torch.inf

    def within(self, limits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows and columns of the bounds that do not exceed the limits of their rows, row by row."""
        row, strip = (self.smallest <= limits[:, None]).nonzero(as_tuple=True)
        pair, place = (self.bounds[row, strip] <= limits[row, None]).nonzero(as_tuple=True)
        return row[pair], strip[pair] * STRIP + place
