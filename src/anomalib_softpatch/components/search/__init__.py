# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Search of memory banks: plain, pruned, approximate and in graphs, behind one protocol, :class:`Search`."""

from anomalib_softpatch.components.search.bank import MemoryBank, Nearest, Rows, Search
from anomalib_softpatch.components.search.exact import NearestNeighborSearch
from anomalib_softpatch.components.search.plain import nearest_neighbors

__all__ = ["MemoryBank", "Nearest", "NearestNeighborSearch", "Rows", "Search", "nearest_neighbors"]
