# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Coreset: farthest-first (k-center greedy) selection of the patches that enter the memory bank.

The centres and their order are those of Anomalib's ``KCenterGreedy``, which computes the distance of every patch to
every centre chosen. Here a distance computed earlier serves as an upper bound of the distance now, so that most patches
need no look at most centres, and those that do are brought up to date a few thousand at a time in matrix products.

Example:
    >>> import torch
    >>> from anomalib_softpatch.components.coreset import k_center_greedy
    >>> features = torch.randn(10_000, 64)
    >>> k_center_greedy(features, size=100, first=0).shape
    torch.Size([100])
"""

from collections.abc import Iterator

import torch
from tqdm import tqdm

# Rows brought up to date in one go. Larger sets mean fewer passes over all bounds, but more rows that never lead.
ACTIVE_SIZE = 4096
# Centres in one matrix product: rows that fall behind are dropped between two products.
CENTER_BLOCK = 1024
# Share of the variance that may be left out of the distances used for the bounds (the decisions use all of it).
NEGLIGIBLE_VARIANCE = 1e-7
# Rows that are centred at a time, and rows that their mean and axes are estimated from, about.
CHUNK = 16384


def k_center_greedy(
    features: torch.Tensor,
    size: int,
    first: int,
    eligible: torch.Tensor | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Choose ``size`` rows, each the farthest from all rows chosen before (farthest-first, k-center greedy).

    Bounds come from matrix products, whose rounding errors are bounded in turn; which row comes next is decided from
    distances computed as ``KCenterGreedy`` computes them, among all rows that could be the farthest. Ties go to the row
    with the lowest index. Once every eligible row coincides with a centre, the first eligible row is repeated, as
    ``KCenterGreedy`` does.

    Args:
        features: Rows to choose from, shape ``(n, d)``, float32 or float64.
        size: Number of rows to choose.
        first: Index of the first centre.
        eligible: Rows that may be chosen, boolean of shape ``(n,)``. Default: all.
        progress: Show a progress bar.

    Returns:
        Indices of the chosen rows in the order of choice, shape ``(size,)``, int64, on the device of ``features``.

    Raises:
        ValueError: If ``size`` is not positive or ``first`` is not an eligible row.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018,
        algorithm 1; PatchCore (arXiv 2106.08265), section 3.2.
    """
    rows = torch.arange(len(features), device=features.device) if eligible is None else eligible.nonzero().squeeze(1)
    _validate(features, size, first, rows)
    points = _CentredRows(features, rows)
    norms = points.squared_norms()
    # Bounds the error of squared distances in expanded form: each of the products and sums rounds once, and two rows
    # may have lost their parts in opposite directions.
    rounding = torch.finfo(features.dtype).eps * (points.dimensions + 8) * 2 * float(norms.max()) + 4 * points.lost

    chosen = torch.empty(size, dtype=torch.long, device=features.device)  # positions within rows
    chosen[0] = torch.searchsorted(rows, first)
    centers = _Centers(chosen, points)
    centers.extend(1)
    # Squared distance to the nearest of the first seen[i] centres: an upper bound of the distance to all centres.
    bounds = torch.full_like(norms, torch.inf)
    seen = torch.zeros(len(rows), dtype=torch.int32, device=features.device)
    active_size = ACTIVE_SIZE

    with tqdm(total=size, initial=1, desc="Selecting coreset", unit="patch", disable=not progress) as bar:
        while (count := len(centers)) < size:
            active, outside = _largest(bounds, active_size)
            stale = bool((seen[active] < count).any())
            _bring_up_to_date(points, norms, centers, active, outside - rounding, bounds, seen)
            # Only these can be farther away than everything outside of the active set. Sorted: ties go to the lowest.
            leaders = active[bounds[active] >= outside - rounding].sort().values
            distances = _exact_distances(features, rows, points, centers, leaders, rounding)
            new = _choose(features[rows[leaders]], distances, outside + rounding, size - count)
            if new is None:  # the rest are duplicates of centres
                chosen[count:] = 0
                bar.update(size - count)
                break
            bounds[leaders] = distances.square()
            seen[leaders] = count + len(new)
            chosen[count : count + len(new)] = leaders[new]
            centers.extend(len(new))
            bar.update(len(new))
            if not len(new) and not stale:  # more ties than the active set holds
                active_size *= 2
    return rows[chosen]


def _validate(features: torch.Tensor, size: int, first: int, rows: torch.Tensor) -> None:
    if size < 1:
        msg = f"size must be at least 1, got {size}."
        raise ValueError(msg)
    if features.dtype not in {torch.float32, torch.float64}:
        msg = f"features must be float32 or float64, got {features.dtype}: half precision cannot rank distances."
        raise ValueError(msg)
    if not (rows == first).any():
        msg = f"first={first} is not one of the {len(rows)} rows that may be chosen."
        raise ValueError(msg)


class _CentredRows:
    """Rows to choose from, centred, which keeps digits in expanded distances, and made when they are asked for.

    All features may fill the memory, so they are not copied. Only where the rows do not vary in a good part of their
    dimensions are they copied without those: a projection to more dimensions than the features have, as Anomalib's rule
    asks for below about 300 channels, has such directions.

    Args:
        features: Shape ``(n, d)``.
        rows: Which of them may be chosen, shape ``(m,)``.

    Attributes:
        dimensions: Number of dimensions that are left.
        lost: Largest squared length that any row lost.
    """

    def __init__(self, features: torch.Tensor, rows: torch.Tensor) -> None:
        self.features = features
        self.rows = rows
        sample = features[rows[:: max(1, len(rows) // CHUNK)]]
        self.mean = sample.mean(dim=0)
        self.dimensions, self.lost = features.shape[1], 0.0
        self.reduced: torch.Tensor | None = None

        sample = (sample - self.mean).double()
        variances, axes = torch.linalg.eigh(sample.T @ sample)
        dropped = int((variances.cumsum(dim=0) <= NEGLIGIBLE_VARIANCE * variances.sum()).sum())
        if dropped < self.dimensions // 5:  # too few to pay for the copy
            return
        axes = axes.to(features.dtype)
        reduced = features.new_empty(len(rows), self.dimensions - dropped)
        for part, centred in self.chunks():
            reduced[part] = centred @ axes[:, dropped:]
            self.lost = max(self.lost, float((centred @ axes[:, :dropped]).square().sum(dim=1).max()))
        self.reduced, self.dimensions = reduced, reduced.shape[1]

    def __getitem__(self, positions: torch.Tensor | slice) -> torch.Tensor:
        """Return the rows at some positions within ``rows``, shape ``(len(positions), dimensions)``."""
        if self.reduced is not None:
            return self.reduced[positions]
        return self.features[self.rows[positions]].sub_(self.mean)

    def chunks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield all rows, some at a time, with their positions."""
        for start in range(0, len(self.rows), CHUNK):
            part = slice(start, start + CHUNK)
            yield part, self[part]

    def squared_norms(self) -> torch.Tensor:
        """Return the squared length of every row, shape ``(m,)``."""
        return torch.cat([part.square().sum(dim=1) for _, part in self.chunks()])


class _Centers:
    """The centres chosen so far, with their rows side by side, as matrix products want them.

    Args:
        chosen: Positions of the centres; filled from its beginning.
        points: The rows.

    Attributes:
        points: Rows of the centres, as far as they are chosen.
        norms: Their squared lengths.
    """

    def __init__(self, chosen: torch.Tensor, points: _CentredRows) -> None:
        self.chosen = chosen
        self.all_points = points
        self.points = points.features.new_empty(len(chosen), points.dimensions)
        self.norms = points.features.new_empty(len(chosen))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, count: int) -> None:
        """Take in the next centres from ``chosen``."""
        new = slice(self._count, self._count + count)
        self.points[new] = self.all_points[self.chosen[new]]
        self.norms[new] = self.points[new].square().sum(dim=1)
        self._count += count


def _largest(bounds: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """Return the indices of the ``count`` largest bounds, and the largest bound that is not among them."""
    if count >= len(bounds):
        return torch.arange(len(bounds), device=bounds.device), -torch.inf
    values, indices = torch.topk(bounds, count + 1)
    return indices[:-1], float(values[-1])


def _bring_up_to_date(
    points: _CentredRows,
    norms: torch.Tensor,
    centers: _Centers,
    active: torch.Tensor,
    outside: float,
    bounds: torch.Tensor,
    seen: torch.Tensor,
) -> None:
    """Lower the bounds of the active rows by the centres they have not seen, as long as they exceed ``outside``."""
    start = int(seen[active].min())
    rows, row_norms, row_bounds = points[active], norms[active], bounds[active]
    while start < len(centers) and len(active):
        stop = min(start + CENTER_BLOCK, len(centers))
        products = torch.addmm(centers.norms[start:stop], rows, centers.points[start:stop].T, alpha=-2)
        squares = products.amin(dim=1).add_(row_norms).clamp_(min=0)
        row_bounds = torch.minimum(row_bounds, squares)
        bounds[active] = row_bounds
        seen[active] = stop
        start = stop
        leading = row_bounds >= outside
        if leading.sum() < 0.8 * len(active):
            active, rows, row_norms, row_bounds = (x[leading] for x in (active, rows, row_norms, row_bounds))


def _exact_distances(
    features: torch.Tensor,
    rows: torch.Tensor,
    points: _CentredRows,
    centers: _Centers,
    leaders: torch.Tensor,
    rounding: float,
) -> torch.Tensor:
    """Return the distance of each leader to its nearest centre, computed as ``KCenterGreedy`` does, shape ``(len,)``.

    Only centres that could be the nearest, given the rounding errors of the matrix product, are looked at that way.
    """
    count = len(centers)
    distances = torch.full((len(leaders),), torch.inf, dtype=features.dtype, device=features.device)
    chunk = max(1, 2**24 // count)
    for part, out in zip(leaders.split(chunk), distances.split(chunk), strict=True):
        squares = torch.addmm(centers.norms[:count], points[part], centers.points[:count].T, alpha=-2)
        row, column = (squares <= squares.amin(dim=1, keepdim=True) + 2 * rounding).nonzero(as_tuple=True)
        exact = torch.linalg.norm(features[rows[part[row]]] - features[rows[centers.chosen[column]]], dim=1)
        out.scatter_reduce_(0, row, exact, "amin")
    return distances


def _choose(rows: torch.Tensor, distances: torch.Tensor, outside: float, limit: int) -> list[int] | None:
    """Choose farthest-first among the leaders while their squared distance exceeds ``outside``.

    Args:
        rows: Features of the leaders, shape ``(n, d)``.
        distances: Their distances to the nearest centre, shape ``(n,)``; brought up to date in place.
        outside: Squared distance that a row outside of the leaders may have.
        limit: Most rows to choose.

    Returns:
        Positions of the rows chosen, in order; ``None`` if every row coincides with a centre.
    """
    new: list[int] = []
    while len(new) < limit and len(rows):
        farthest = int(distances.argmax())
        distance = float(distances[farthest])
        if distance == 0 and outside < 0 and not new:
            return None
        if distance == 0 or distance**2 <= outside:
            break
        new.append(farthest)
        torch.minimum(distances, torch.linalg.norm(rows - rows[farthest], dim=1), out=distances)
        distances[farthest] = 0
    return new
