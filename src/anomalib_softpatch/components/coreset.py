# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Coreset: farthest-first (k-center greedy) selection of the patches that enter the memory bank.

The centers and their order are those of Anomalib's ``KCenterGreedy``, which computes the distance of every patch to
every chosen center. Two bounds make most of that unnecessary here. A distance computed earlier is an upper bound of the
current distance, so only the patches with the largest bounds are compared with the centers chosen since. And a lower
bound, from a few of the dimensions, shows which centers can be nearer than those already seen.
"""

import torch

from anomalib_softpatch.components.progress import progress_bar
from anomalib_softpatch.components.search.bounds import STRIP, BoundsInStrips, LeadingAxes
from anomalib_softpatch.components.tracing import without_autocast

# Rows brought up to date at a time. Larger sets mean fewer passes over all rows, but more rows that never lead.
ACTIVE_SIZE = 8192
# Bounds in one matrix product, which should stay in the cache, and the smallest number of rows in it.
BLOCK_SIZE = 2**21
SMALLEST_PART = 512
# Smallest number of leading axes, and smallest share of the variance that they explain. If more than one in WASTEFUL
# bounds leaves a pair in doubt, their number is doubled.
SMALLEST_AXES = 32
EXPLAINED_VARIANCE = 0.96
WASTEFUL = 256
# If rounding then exceeds this share of most squared distances, bounds are computed in double precision instead.
COARSE = 1e-2
# Elements of the differences of rows that are computed at a time: small enough for the cache.
DIFFERENCE_BLOCK = 2**18
# Approximate number of rows from which the axes are estimated, and rows that are read at a time.
SAMPLE_SIZE = 16384
CHUNK = 4096


def k_center_greedy(
    features: torch.Tensor,
    size: int,
    first: int | torch.Tensor,
    eligible: torch.Tensor | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Choose ``size`` rows, each the farthest from all rows chosen before (farthest-first, k-center greedy).

    Distances are computed as ``KCenterGreedy`` computes them; bounds, and bounds of their rounding errors, only show
    which ones are not needed. Ties go to the row with the lowest index. Once every eligible row coincides with a
    center, the first eligible row is repeated, as in ``KCenterGreedy``. See Sener and Savarese, Active Learning for
    Convolutional Neural Networks: A Core-Set Approach, ICLR 2018, algorithm 1, and PatchCore (arXiv 2106.08265).

    Args:
        features: Rows to choose from, shape ``(n, d)``, float32 or float64.
        size: Number of rows to choose.
        first: Index of the first center, or distinct indices of the first centers, shape ``(c,)``.
        eligible: Rows that may be chosen, boolean of shape ``(n,)``. Default: all.
        progress: Show a progress bar.

    Returns:
        Indices of the chosen rows in the order of choice, shape ``(size,)``, int64, on the device of ``features``.

    Raises:
        ValueError: If ``size`` is less than 1 or than the number of first centers, if there are no first centers, if
            one of them is not eligible, or if distances are not finite or too large to be squared safely.

    Example:
        >>> k_center_greedy(torch.randn(10_000, 64), size=100, first=0).shape
        torch.Size([100])
    """
    rows = torch.arange(len(features), device=features.device)
    rows = rows if eligible is None else rows[eligible]
    first = torch.as_tensor(first, device=features.device).reshape(-1)
    _validate(features, size, first, rows)

    count = len(first)
    chosen = torch.empty(size, dtype=torch.long, device=features.device)
    chosen[:count] = first
    centers = features.new_empty(size, features.shape[1])
    centers[:count] = features[first]
    nearest = _NearestCenters(features, rows, centers)
    active_size = ACTIVE_SIZE

    with progress_bar(size, "Selecting coreset", "patch", progress, initial=count) as bar:
        while count < size:
            active, outside = _largest(nearest.distances, active_size)
            stale = bool((nearest.seen[active] < count).any())
            nearest.bring_up_to_date(active, count)
            # Only these can be farther away than everything outside of the active set.
            leaders = active[nearest.distances[active] >= outside]
            leaders = leaders.sort().values  # ties go to the lowest index
            candidates, distances = features[rows[leaders]], nearest.distances[leaders]
            new = _choose(candidates, distances, outside, size - count)
            if new is None:  # all other rows are duplicates of centers
                chosen[count:] = rows[0]
                bar.update(size - count)
                break
            start, count = count, count + len(new)
            chosen[start:count] = rows[leaders[new]]
            centers[start:count] = candidates[new]
            nearest.distances[leaders] = distances
            nearest.seen[leaders] = count
            bar.update(len(new))
            if not len(new) and not stale:  # more ties than the active set holds
                active_size *= 2
    return chosen


def _validate(features: torch.Tensor, size: int, first: torch.Tensor, rows: torch.Tensor) -> None:
    if size < 1:
        msg = f"size must be at least 1, got {size}."
        raise ValueError(msg)
    if features.dtype not in {torch.float32, torch.float64}:
        msg = f"features must be float32 or float64, got {features.dtype}: half precision cannot rank distances."
        raise ValueError(msg)
    if not 1 <= len(first) <= size:
        msg = f"first must be 1 to {size} centers for a coreset of {size}, got {len(first)}."
        raise ValueError(msg)
    wrong = first[~torch.isin(first, rows)]
    if len(wrong):
        msg = f"first={int(wrong[0])} is not one of the {len(rows)} rows that may be chosen."
        raise ValueError(msg)


class _NearestCenters:
    """Distance of every row to the nearest center that it has seen: an upper bound of that to the nearest of all."""

    # Reduced rows, if they take at most half the memory of the features; otherwise None: they are computed when needed
    _points: torch.Tensor | None
    # Distance of each row, and how many centers it has seen, counted from the first; both of shape (rows,)
    distances: torch.Tensor
    seen: torch.Tensor

    def __init__(self, features: torch.Tensor, rows: torch.Tensor, centers: torch.Tensor) -> None:
        self.features = features
        self.rows = rows
        self.centers = centers
        self.distances = features.new_empty(len(rows))
        for part, out in zip(rows.split(CHUNK), self.distances.split(CHUNK), strict=True):
            torch.linalg.norm(features[part] - centers[0], dim=1, out=out)
        # Rows are at most twice the largest distance away from any mean of rows: no square below exceeds 64 times its.
        if not self.distances.max() <= torch.finfo(features.dtype).max ** 0.5 / 8:
            msg = "features contain NaN or infinity, or values so large that distances overflow: check their source."
            raise ValueError(msg)
        self.seen = torch.ones(len(rows), dtype=torch.int32, device=rows.device)
        # Relative rounding error of KCenterGreedy's squared distances
        self._rounding = torch.finfo(features.dtype).eps * (features.shape[1] + 8)

        sample = features[rows[:: max(1, len(rows) // SAMPLE_SIZE)]].double()
        self._center = sample.mean(dim=0)
        sample = sample - self._center
        variances, axes = torch.linalg.eigh(sample.T @ sample)
        variances, self._axes = variances.flip(0), axes.flip(1)  # largest first
        leading = int((variances.cumsum(dim=0) < EXPLAINED_VARIANCE * variances.sum()).sum()) + 1
        self._reduce_to(max(leading, SMALLEST_AXES), features.dtype if _has_exact_products() else torch.float64)

    def _reduce_to(self, axes: int, dtype: torch.dtype) -> None:
        """Compute bounds from this many axes from now on."""
        self._axis_count = min(axes, self._axes.shape[1])
        self._leading = LeadingAxes(self._center, self._axes[:, : self._axis_count])
        width = self._axis_count + 1
        room = -(-len(self.centers) // STRIP) * STRIP
        self._center_points = self.features.new_zeros(room, width, dtype=dtype)
        self._center_norms = self._center_points.new_full((room,), torch.inf)
        self._reduced_centers = 0
        self._bound_rounding = torch.finfo(dtype).eps * (width + 8)
        self._points = None
        if 2 * width * self._center_points.itemsize <= self.features.shape[1] * self.features.itemsize:
            self._points = self._center_points.new_empty(len(self.rows), width)
            for part, out in zip(self.rows.split(CHUNK), self._points.split(CHUNK), strict=True):
                out.copy_(self._reduce(self.features[part]))

    def _reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Reduce rows in double precision, so that only the matrix product of the bounds has rounding errors."""
        return self._leading.reduce(features).to(self._center_points.dtype)

    def bring_up_to_date(self, active: torch.Tensor, count: int) -> None:
        """Compare some rows with those of the first ``count`` centers that they have not seen."""
        for first in range(self._reduced_centers, count, CHUNK):
            new = slice(first, min(first + CHUNK, count))
            points = self._reduce(self.centers[new])
            self._center_points[new], self._center_norms[new] = points, points.square().sum(dim=1)
        self._reduced_centers = count
        active = active[self.seen[active].argsort()]
        pairs = doubtful = coarse = 0
        start = 0
        while start < len(active) and (oldest := int(self.seen[active[start]])) < count:
            part = active[start : start + max(SMALLEST_PART, BLOCK_SIZE // (count - oldest + STRIP))]
            first = oldest // STRIP * STRIP
            in_doubt, coarse_rows = self._compare(part, first, count)
            pairs += len(part) * (count - first)
            doubtful += max(0, in_doubt - len(part))  # one pair per row is expected
            coarse += coarse_rows
            self.seen[part] = count
            start += len(part)
        if doubtful * WASTEFUL > pairs:
            dtype = self._center_points.dtype
            if dtype != torch.float64 and 2 * coarse > start:
                self._reduce_to(self._axis_count, torch.float64)
            elif self._axis_count < self._axes.shape[1]:
                self._reduce_to(2 * self._axis_count, dtype)

    def _compare(self, part: torch.Tensor, first: int, count: int) -> tuple[int, int]:
        """Update distances with the centers from ``first`` on; count pairs in doubt, and rows with coarse bounds."""
        features, distances = self.features[self.rows[part]], self.distances[part]
        points = self._reduce(features) if self._points is None else self._points[part]
        norms = points.square().sum(dim=1)
        in_doubt = 0
        size = max(1, BLOCK_SIZE // (len(part) * STRIP)) * STRIP
        for start in range(first, count, size):
            block = slice(start, min(start + size, -(-count // STRIP) * STRIP))
            # Squares without the norms of the rows, which are the same for all centers
            with without_autocast(points.device):
                squares = torch.addmm(self._center_norms[block], points, self._center_points[block].T, alpha=-2)
            bounds = BoundsInStrips(squares)
            # The most promising center first: it rules out nearly all of the others.
            nearer = (bounds.smallest.amin(dim=1) <= self._limits(distances, norms)).nonzero().squeeze(1)
            if not len(nearer):
                continue
            promising = bounds.most_promising()[nearer]
            bounds.rule_out(nearer, promising)
            distance = _distances(features, nearer, self.centers, promising + start)
            distances[nearer] = torch.minimum(distances[nearer], distance)
            row, column = bounds.within(self._limits(distances, norms))
            in_doubt += len(row)
            distances.scatter_reduce_(0, row, _distances(features, row, self.centers, column + start), "amin")
        self.distances[part] = distances
        return in_doubt, int((self._errors(distances, norms) > COARSE * distances.square()).sum())

    def _limits(self, distances: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Return the largest possible bounds, without the norms of the rows, of centers that are no farther away."""
        return distances.square() * (1 + self._rounding) - norms + self._errors(distances, norms)

    def _errors(self, distances: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Return the largest possible rounding errors of the bounds of centers that are no farther away."""
        # They grow with the square of the sum of both lengths; the center's is at most the row's plus the distance
        return self._bound_rounding * (2 * norms.sqrt() + distances).square()


def _has_exact_products() -> bool:
    """Return whether matrix products of float32 use all digits, and not shorter types (TF32, bfloat16)."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the precision was set for each backend, and differs
        return False


def _distances(
    rows: torch.Tensor, indices: torch.Tensor, others: torch.Tensor, other_indices: torch.Tensor
) -> torch.Tensor:
    """Return the distances between rows and others, pair by pair, as ``KCenterGreedy`` computes them."""
    distances = rows.new_empty(len(indices))
    size = max(1, DIFFERENCE_BLOCK // rows.shape[1])
    for first, second, out in zip(*(x.split(size) for x in (indices, other_indices, distances)), strict=True):
        torch.linalg.norm(rows[first] - others[second], dim=1, out=out)
    return distances


def _largest(bounds: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """Return the indices of the ``count`` largest bounds, and the largest bound that is not among them."""
    if count >= len(bounds):
        return torch.arange(len(bounds), device=bounds.device), -torch.inf
    values, indices = torch.topk(bounds, count + 1)
    return indices[:-1], float(values[-1])


def _choose(rows: torch.Tensor, distances: torch.Tensor, outside: float, limit: int) -> list[int] | None:
    """Choose rows farthest-first while one is farther than ``outside``; ``None`` if all are copies of centers."""
    new: list[int] = []
    while len(new) < limit and len(rows):
        farthest = int(distances.argmax())
        distance = float(distances[farthest])
        if distance == 0 and outside <= 0 and not new:
            return None
        if distance == 0 or distance <= outside:
            break
        new.append(farthest)
        torch.minimum(distances, torch.linalg.norm(rows - rows[farthest], dim=1), out=distances)
        distances[farthest] = 0
    return new
