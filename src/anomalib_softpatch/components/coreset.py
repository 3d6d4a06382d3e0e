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

from anomalib_softpatch.components import distributed

# Rows brought up to date in one go. Larger sets mean fewer passes over all bounds, but more rows that never lead.
ACTIVE_SIZE = 4096
# Centres in one matrix product: rows that fall behind are dropped between two products.
CENTER_BLOCK = 1024
# Share of the variance that may be left out of the distances used for the bounds (the decisions use all of it).
NEGLIGIBLE_VARIANCE = 1e-7
# Matrix products go on in double precision once their rounding errors exceed this share of the largest distance: where
# few rows are far from all others, as those of untrained networks are, and many near ones are to be chosen.
COARSE = 1e-2
# Rows that are centred at a time, and rows that their mean and axes are estimated from, about.
CHUNK = 16384


def k_center_greedy(
    features: torch.Tensor,
    size: int,
    first: int,
    eligible: torch.Tensor | None = None,
    progress: bool = False,
    numbers: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose ``size`` rows, each the farthest from all rows chosen before (farthest-first, k-center greedy).

    Bounds come from matrix products, whose rounding errors are bounded in turn; which row comes next is decided from
    distances computed as ``KCenterGreedy`` computes them, among all rows that could be the farthest. Ties go to the row
    with the lowest index. Once every eligible row coincides with a centre, the first eligible row is repeated, as
    ``KCenterGreedy`` does.

    Where ``torch.distributed`` is initialized, all ranks call this, each with its share of the rows, and get the same
    choice, that of one process with all rows. Each brings its own rows up to date and sends the others those that could
    be the farthest; all of them then choose among these.

    Args:
        features: Rows to choose from, shape ``(n, d)``, float32 or float64.
        size: Number of rows to choose.
        first: Index of the first centre.
        eligible: Rows that may be chosen, boolean of shape ``(n,)``, or that of the rows of all ranks. Default: all.
        progress: Show a progress bar.
        numbers: Index of each row among those of all ranks, ascending, shape ``(n,)``. Default: these are all.

    Returns:
        Indices of the chosen rows, among those of all ranks, in the order of choice, shape ``(size,)``, int64, on the
        device of ``features``.

    Raises:
        ValueError: If ``size`` is not positive or ``first`` is not an eligible row.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018,
        algorithm 1; PatchCore (arXiv 2106.08265), section 3.2.
    """
    rows = torch.arange(len(features), device=features.device)
    numbers = rows if numbers is None else numbers
    rows = rows if eligible is None else eligible[numbers].nonzero().squeeze(1)
    numbers = numbers[rows]
    _validate(features, size, first, numbers)
    points = _CentredRows(features, rows)
    norms = points.squared_norms()
    (largest_norm,) = distributed.largest(float(norms.max()) if len(norms) else 0.0, device=features.device)
    (rounding,) = distributed.largest(points.rounding(largest_norm), device=features.device)
    # The same for the squares of distances that are computed as KCenterGreedy computes them, in proportion to these.
    exact_rounding = torch.finfo(features.dtype).eps * (features.shape[1] + 8)

    chosen = torch.empty(size, dtype=torch.long, device=features.device)
    chosen[0] = first
    centers = _Centers(size, points)
    centers.append(distributed.all_reduce(features[rows[numbers == first]].sum(dim=0, keepdim=True)))
    # Squared distance to the nearest of the first seen[i] centres: an upper bound of the distance to all centres.
    bounds = (norms + centers.norms[0] - 2 * points.products(centers.points[0])).clamp_(min=0)
    seen = torch.ones(len(rows), dtype=torch.int32, device=features.device)
    active_size = ACTIVE_SIZE

    with tqdm(total=size, initial=1, desc="Selecting coreset", unit="patch", disable=not progress) as bar:
        while (count := len(centers)) < size:
            active, outside = _largest(bounds, active_size)
            stale = bool((seen[active] < count).any())
            farthest = float(bounds[active].max()) if len(active) else 0.0
            outside, stale, farthest = distributed.largest(outside, stale, farthest, device=features.device)
            if points.dtype != torch.float64 and rounding > COARSE * farthest:
                # From here on rounding would hide which row is the farthest. Bounds stay bounds with the old errors on.
                bounds = bounds.double().add_(rounding)
                points.use_double_precision()
                centers.use_double_precision()
                norms = points.squared_norms()
                (rounding,) = distributed.largest(points.rounding(largest_norm), device=features.device)
                continue
            tolerance = rounding + exact_rounding * min(farthest, 4 * largest_norm)
            _bring_up_to_date(points, norms, centers, active, outside - tolerance, bounds, seen)
            # Only these can be farther away than everything outside of the active set.
            leaders = active[bounds[active] >= outside - tolerance]
            distances = _exact_distances(features, rows, points, centers, leaders, tolerance)
            places, *candidates = _gather_sorted(numbers[leaders], features[rows[leaders]], distances)
            candidate_numbers, candidate_features, distances = candidates
            new = _choose(candidate_features, distances, outside + tolerance, size - count)
            if new is None:  # the rest are duplicates of centres
                chosen[count:] = 0 if eligible is None else eligible.nonzero()[0]
                bar.update(size - count)
                break
            bounds[leaders] = distances[places].to(bounds.dtype).square()
            seen[leaders] = count + len(new)
            chosen[count : count + len(new)] = candidate_numbers[new]
            centers.append(candidate_features[new])
            bar.update(len(new))
            if not len(new) and not stale:  # more ties than the active set holds
                active_size *= 2
    return chosen


def _validate(features: torch.Tensor, size: int, first: int, numbers: torch.Tensor) -> None:
    if size < 1:
        msg = f"size must be at least 1, got {size}."
        raise ValueError(msg)
    if features.dtype not in {torch.float32, torch.float64}:
        msg = f"features must be float32 or float64, got {features.dtype}: half precision cannot rank distances."
        raise ValueError(msg)
    known, count = distributed.all_reduce(torch.stack([(numbers == first).sum(), torch.ones_like(numbers).sum()]))
    if not known:
        msg = f"first={first} is not one of the {count} rows that may be chosen."
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
        total = distributed.all_reduce(torch.cat((sample.sum(dim=0), sample.new_tensor([len(sample)]))))
        self.mean = total[:-1] / total[-1]
        self.dimensions, self.lost = features.shape[1], 0.0
        self.axes: torch.Tensor | None = None
        self.reduced: torch.Tensor | None = None

        sample = (sample - self.mean).double()
        variances, axes = torch.linalg.eigh(distributed.all_reduce(sample.T @ sample))
        dropped = int((variances.cumsum(dim=0) <= NEGLIGIBLE_VARIANCE * variances.sum()).sum())
        if dropped < self.dimensions // 5:  # too few to pay for the copy
            return
        axes = axes.to(features.dtype)
        reduced = features.new_empty(len(rows), self.dimensions - dropped)
        for part, centred in self.chunks():
            reduced[part] = centred @ axes[:, dropped:]
            self.lost = max(self.lost, float((centred @ axes[:, :dropped]).square().sum(dim=1).max()))
        self.axes, self.reduced, self.dimensions = axes[:, dropped:], reduced, reduced.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type that the rows are given in."""
        return self.mean.dtype

    def use_double_precision(self) -> None:
        """Give the rows in double precision, and all their dimensions, from here on."""
        self.mean = self.mean.double()
        self.axes = self.reduced = None
        self.dimensions, self.lost = self.features.shape[1], 0.0

    def rounding(self, largest_norm: float) -> float:
        """Bound the error of squared distances in expanded form, for rows of up to this squared length.

        Each of the products and sums rounds once, and two rows may have lost their parts in opposite directions.
        """
        return torch.finfo(self.dtype).eps * (self.dimensions + 8) * 2 * largest_norm + 4 * self.lost

    def __getitem__(self, positions: torch.Tensor | slice) -> torch.Tensor:
        """Return the rows at some positions within ``rows``, shape ``(len(positions), dimensions)``."""
        if self.reduced is not None:
            return self.reduced[positions]
        return self.features[self.rows[positions]].to(self.dtype).sub_(self.mean)

    def like(self, features: torch.Tensor) -> torch.Tensor:
        """Return rows that may be those of other ranks, shape ``(n, d)``, as these are: centred, without dimensions."""
        centred = features.to(self.dtype) - self.mean
        return centred if self.axes is None else centred @ self.axes

    def chunks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield all rows, some at a time, with their positions."""
        for start in range(0, len(self.rows), CHUNK):
            part = slice(start, start + CHUNK)
            yield part, self[part]

    def products(self, point: torch.Tensor) -> torch.Tensor:
        """Return the inner product of every row with a point, shape ``(m,)``."""
        products = self.mean.new_empty(len(self.rows))
        for part, rows in self.chunks():
            products[part] = rows @ point
        return products

    def squared_norms(self) -> torch.Tensor:
        """Return the squared length of every row, shape ``(m,)``."""
        norms = self.mean.new_empty(len(self.rows))
        for part, rows in self.chunks():
            norms[part] = rows.square().sum(dim=1)
        return norms


class _Centers:
    """The centres chosen so far, with their rows side by side, as matrix products want them.

    Args:
        size: Number of centres to be chosen.
        points: The rows that they are compared with.

    Attributes:
        features: Rows of the centres, filled from the beginning.
        points: The same, centred.
        norms: Squared lengths of these.
    """

    def __init__(self, size: int, points: _CentredRows) -> None:
        self._rows = points
        self.features = points.features.new_empty(size, points.features.shape[1])
        self._count = 0
        self._make_room()

    def _make_room(self) -> None:
        self.points = self._rows.mean.new_empty(len(self.features), self._rows.dimensions)
        self.norms = self._rows.mean.new_empty(len(self.features))

    def __len__(self) -> int:
        return self._count

    def append(self, features: torch.Tensor) -> None:
        """Add centres by their rows, shape ``(n, d)``."""
        new = slice(self._count, self._count + len(features))
        self.features[new] = features
        self._count += len(features)
        self._centre(new)

    def _centre(self, part: slice) -> None:
        self.points[part] = self._rows.like(self.features[part])
        self.norms[part] = self.points[part].square().sum(dim=1)

    def use_double_precision(self) -> None:
        """Give the centres as the rows are given from here on."""
        self._make_room()
        for start in range(0, self._count, CHUNK):
            self._centre(slice(start, min(start + CHUNK, self._count)))


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
    start = int(seen[active].min()) if len(active) else len(centers)
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
        exact = torch.linalg.norm(features[rows[part[row]]] - centers.features[column], dim=1)
        out.scatter_reduce_(0, row, exact, "amin")
    return distances


def _gather_sorted(numbers: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Gather rows of all ranks in the order of their numbers, so that ties go to the lowest.

    Returns:
        Places of this rank's rows among them, the numbers of all, and the tensors of all.
    """
    gathered = distributed.all_gather(numbers, *tensors)
    order = gathered[0].argsort()
    gathered = [tensor[order] for tensor in gathered]
    return [torch.searchsorted(gathered[0], numbers), *gathered]


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
