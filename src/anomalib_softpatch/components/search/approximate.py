# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Approximate search of large memory banks with faiss.

The index is an inverted file of short codes: the rows of a bank are reduced to their leading axes and clustered. A
query is compared with the codes of the rows in the nearest clusters, with the best of these in reduced form, and with
the best of those in full. See Jégou, Douze, Schmid, Product Quantization for Nearest Neighbor Search, PAMI 2011.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.search.bank import Nearest
from anomalib_softpatch.components.search.bounds import leading_axes
from anomalib_softpatch.components.search.exact import DIFFERENCE_BLOCK, Index, NearestNeighborSearch
from anomalib_softpatch.components.search.plain import (
    BANK_BLOCK,
    QUERY_BLOCK,
    nearest_neighbors,
    nearest_row,
    squared_lengths,
)
from anomalib_softpatch.components.tracing import without_autocast
from anomalib_softpatch.options import check_choice

logger = logging.getLogger(__name__)

SearchName: TypeAlias = Literal["exact", "faiss"]

# Banks of fewer rows are searched exactly, which takes at most twice as long.
SMALLEST_BANK = 8192
# An index is tested by the nearest neighbors of this many rows of the bank. On average, the rows that it finds may be
# farther by this share: real features give 0.1 % or less, but codes fail if a few rows are far away.
TRIALS = 256
LARGEST_EXCESS = 0.01
# Neighbors to search for where rows are left out. If the first number are all left out, the second is tried, and then a
# search without the index
NEIGHBORS = (4, 32)
# Half of any of the following values loses more than 1 % of the nearest rows, and twice as much finds less than 1 %
# more: measured with 100,000 real rows x 1,536, see benchmarks/approximate_search.py.
# Values of reduced rows; two or four times as many if these explain too little of the variance
LENGTH = 128
# Share of the clusters that a query is compared with: a share, so that as much is found in larger banks
PROBED = 1 / 8
# For each neighbor: rows compared in full, and rows compared in reduced form
CANDIDATES = 8
REDUCED_CANDIDATES = 64
# Clusters, as a multiple of the square root of the number of rows, and training rows per cluster; chosen for speed
CLUSTERS = 2
TRAINING_ROWS = 64


def check_search(name: SearchName) -> None:
    """Refuse, by a ``ValueError``, a search that does not exist, or that needs faiss if faiss is not installed."""
    check_choice("search", name, SEARCHES)
    if name == "faiss":
        _faiss()


class ApproximateSearch(NearestNeighborSearch):
    """Find approximately the nearest rows of a bank with faiss, if the bank is large and on a CPU.

    The distances to the found rows are exact. Graphs, other devices, small banks, and banks that do not suit faiss use
    the exact search. Equal banks give equal results.
    """

    def make_index(self, features: torch.Tensor, radii: torch.Tensor | None) -> Index:
        """Return a faiss index if it suits the part, otherwise the exact one."""
        if len(features) >= SMALLEST_BANK and features.isfinite().all():
            index = ApproximateIndex(features, radii)
            excess = index.excess()
            if excess <= LARGEST_EXCESS:
                return index
            logger.warning(
                "The memory bank is searched exactly: faiss would find rows that are %.0f %% farther than the nearest.",
                100 * excess,
            )
        return super().make_index(features, radii)


class ApproximateIndex:
    """Search an inverted file of reduced rows, then compare the candidates in full.

    Rows are reduced by :class:`LeadingAxes`, unless they are short or vary along too many axes.

    Args:
        features: Shape ``(m, d)``, float32 or float64, finite, on the CPU; m at least 256.
        radii: Support radii of the rows, shape ``(m,)``. They count for the choice among the candidates, but not for
            the search of the candidates. Default: none.
    """

    @torch.no_grad()
    def __init__(self, features: torch.Tensor, radii: torch.Tensor | None = None) -> None:
        self.features = features
        self.radii = radii
        self.axes = None  # leading axes; None if rows are not reduced
        for length in (LENGTH, 2 * LENGTH, 4 * LENGTH):
            if self.axes is None and length < features.shape[1]:
                self.axes = leading_axes(features, length - 1)  # one value is the length of the rest
        length = features.shape[1] if self.axes is None else self.axes.axes.shape[1] + 1
        length += length % 2  # a code is of two values
        # After a rotation, all values vary about equally, as codes of equal lengths require. Otherwise neighbors are
        # lost, most of all with features of an untrained network
        generator = torch.Generator().manual_seed(0)
        self.rotation = torch.linalg.qr(torch.randn(length, length, dtype=torch.double, generator=generator)).Q.float()
        points = torch.cat([self._reduce(part) for part in features.split(BANK_BLOCK)])
        # One thread: the number of threads can change the rounding of matrix products, and with it the clusters
        with _threads(1):
            self.index = self._build(points.numpy())

    def _build(self, points: np.ndarray) -> Any:
        faiss = _faiss()
        clusters = round(CLUSTERS * len(points) ** 0.5)
        # Codes of four bits for two values: processors can compare many of these at once
        codes = faiss.index_factory(points.shape[1], f"IVF{clusters},PQ{points.shape[1] // 2}x4fs")
        codes.by_residual = False  # not worse, since the rows of a coreset are far apart
        codes.nprobe = max(1, round(PROBED * clusters))
        codes.cp.min_points_per_centroid = 1  # no warnings
        codes.cp.max_points_per_centroid = TRAINING_ROWS
        index = faiss.IndexRefineFlat(codes)
        index.k_factor = REDUCED_CANDIDATES / CANDIDATES
        index.train(points)
        index.add(points)
        return index

    def _reduce(self, rows: torch.Tensor) -> torch.Tensor:
        points = (rows if self.axes is None else self.axes.reduce(rows)).float()
        with without_autocast(rows.device):
            return F.pad(points, (0, len(self.rotation) - points.shape[1])) @ self.rotation

    @torch.no_grad()
    def search(self, queries: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Find approximately the k nearest rows to queries of shape ``(n, d)``.

        Returns:
            Distances and numbers of the rows, both of shape ``(n, k)``, nearest first.
        """
        parts = [self._search(part, k) for part in queries.split(QUERY_BLOCK)]
        distances, indices = zip(*parts, strict=True)
        return torch.cat(distances), torch.cat(indices)

    def nearest(
        self, queries: torch.Tensor, left_out: torch.Tensor | None = None, limits: torch.Tensor | None = None
    ) -> Nearest:
        """Find the nearest row, see :meth:`Index.nearest`."""
        if left_out is None:
            distances, indices = self.search(queries)
            return distances.squeeze(1), indices.squeeze(1)
        distance, row = queries.new_empty(len(queries)), torch.empty(len(queries), dtype=torch.long)
        rest = torch.arange(len(queries))
        for k in NEIGHBORS:
            distances, indices = self.search(queries[rest], min(k, len(self.features)))
            counts = ~left_out[indices]
            first = counts.int().argmax(dim=1, keepdim=True)
            distance[rest], row[rest] = distances.gather(1, first).squeeze(1), indices.gather(1, first).squeeze(1)
            rest = rest[~counts.any(dim=1)]
            if not len(rest):
                return distance, row
        norms = squared_lengths(self.features, left_out)
        distance[rest], row[rest] = nearest_row(queries[rest], self.features, norms=norms, radii=self.radii)
        return distance, row

    def excess(self) -> float:
        """Return how much farther the found rows are than the nearest other rows, as a share, on average."""
        queries = self.features[:: max(1, len(self.features) // TRIALS)]
        nearest = nearest_neighbors(queries, self.features, k=2, radii=self.radii)[0][:, 1]
        found = self.search(queries, k=2)[0][:, 1]
        distinct = nearest > 0
        return float((found[distinct] / nearest[distinct]).mean()) - 1 if distinct.any() else 0.0

    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        count = min(k * CANDIDATES, len(self.features))
        with _threads(torch.get_num_threads()):
            _, found = self.index.search(self._reduce(queries).numpy(), count)
        # Sorted by row, so that the first of equally near rows wins; -1, for no row, comes first
        candidates = torch.from_numpy(found).sort(dim=1).values
        size = max(1, DIFFERENCE_BLOCK // (queries.shape[1] * count))
        pairs = zip(queries.split(size), candidates.split(size), strict=True)
        squares = torch.cat([(some[:, None] - self.features[rows]).square_().sum(dim=2) for some, rows in pairs])
        if self.radii is not None:
            squares = torch.maximum(squares, self.radii[candidates].square())
        squares[candidates < 0] = torch.inf
        squares, order = squares.sort(dim=1, stable=True)
        distances, indices = squares[:, :k].sqrt(), candidates.gather(1, order)[:, :k]
        short = (indices < 0).any(dim=1)  # clusters with too few rows, or queries with NaN
        if short.any():
            distances[short], indices[short] = nearest_neighbors(queries[short], self.features, k, radii=self.radii)
        return distances, indices


SEARCHES: dict[str, type[NearestNeighborSearch]] = {"exact": NearestNeighborSearch, "faiss": ApproximateSearch}


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415  # an extra
    except ImportError as error:
        msg = (
            "search='faiss' needs faiss: pip install 'anomalib-softpatch[faiss]'. With search='exact' the same model "
            "finds the same rows or nearer ones, and takes longer."
        )
        raise ValueError(msg) from error
    return faiss


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of threads of faiss, which has its own runtime for threads, for a block."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
