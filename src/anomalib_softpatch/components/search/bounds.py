# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Lower bounds of distances, so that most pairs of rows need not be compared in full.

Features of images vary mostly along a few axes. Rows are reduced to their coordinates on these leading axes and the
length of the rest. Reduced rows are short, and never farther apart than the rows themselves.
"""

import torch

from anomalib_softpatch.components.tracing import without_autocast

# Rows from which leading axes are estimated, and the share of the variance that they must explain to be useful
SAMPLE_SIZE = 8192
EXPLAINED_VARIANCE = 0.8
# Rows whose nearest neighbors are searched to estimate the distance of neighbors
QUERY_SAMPLE_SIZE = 128
# Variance along the other axes, as a share of the squared distance of neighbors. Below the first, more axes would take
# longer than they save. Above the second, most rows would have too many others within their bounds.
NEGLIGIBLE_REST = 0.03
LARGEST_REST = 0.1
# Neighboring rows of the set that are ruled out together if their smallest bound is too large
STRIP = 64


class LeadingAxes:
    """Reduce rows to their coordinates on some axes and the length of the rest.

    The rests of two rows are at least as far apart as their lengths differ (triangle inequality), so reduced rows are
    never farther apart than the rows. Any orthonormal axes are valid; those of the largest variance give the best
    bounds.

    Args:
        center: Point that becomes the origin, so that expanded distances keep their digits, shape ``(d,)``.
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
    """Estimate the axes along which rows vary most; ``None`` if they explain too little of the variance to be useful.

    Args:
        rows: Shape ``(m, d)``.
        count: Number of axes, less than d.
    """
    if count < 1:
        return None
    sample = sample_rows(rows)
    center = sample.mean(dim=0)
    sample = sample - center
    with without_autocast(rows.device):
        covariance = (sample.T @ sample).double()
    # Subspace iteration: any axes give bounds, so a few steps are enough. An eigendecomposition takes far longer if
    # several processes share the cores.
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
    """Estimate as few leading axes of a set of rows as the search of the nearest row needs.

    On average, a bound is smaller than the squared distance of independent rows by at most twice the variance along the
    other axes. This should be little compared with the squared distance between neighbors, whatever share of the whole
    variance either of them is.

    Args:
        rows: Shape ``(m, d)``.
        most: Largest number of axes, less than d.

    Returns:
        The axes, of the rows' type; ``None`` if bounds from ``most`` axes rule out too little to be useful.
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
    """Return the largest rounding error of squared distances and of the bounds of nearer rows; see docs/pruning.md.

    Args:
        queries: Shape ``(n, d)``.
        reduced: The reduced queries, shape ``(n, a + 1)``.
        squares: Squared distances, one for each query, shape ``(n,)``.
    """
    precision = torch.finfo(queries.dtype).eps
    lengths = 2 * reduced.square().sum(dim=1).sqrt() + squares.sqrt()
    return precision * ((queries.shape[1] + 8) * squares + (reduced.shape[1] + 64) * lengths.square())


def sample_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows from which the center and the leading axes are estimated."""
    return rows[:: max(1, len(rows) // SAMPLE_SIZE)]


class BoundsInStrips:
    """Lower bounds of the squared distances of some rows to the rows of a set, in strips of the set's rows.

    Args:
        bounds: Shape ``(n, m)``, m divisible by ``STRIP``: infinity where the set has no row. A term that is the same
            for all bounds of a row may be left out if it is also left out of the limits.
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
        """Put some pairs, given by row and column, beyond every finite limit; they may still be most promising."""
        self.bounds[rows, columns // STRIP, columns % STRIP] = torch.inf

    def within(self, limits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows and columns of the bounds that do not exceed the limits of their rows, sorted by row."""
        row, strip = (self.smallest <= limits[:, None]).nonzero(as_tuple=True)
        pair, place = (self.bounds[row, strip] <= limits[row, None]).nonzero(as_tuple=True)
        return row[pair], strip[pair] * STRIP + place
