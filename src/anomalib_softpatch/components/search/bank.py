# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A memory bank, the protocol of its search, and the result of a search."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch

# Rows (start, stop) of the stored patches
Rows: TypeAlias = tuple[int, int]
# Distances to patches of a bank and the numbers of their rows, one for each query; both of shape (n,)
Nearest: TypeAlias = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Patches that other patches are compared with.

    Attributes:
        features: Patches of all banks, each stored once, shape ``(m, channels)``.
        weights: Weight of each of them, not negative, shape ``(m,)``.
        radii: Support radius of each of them, shape ``(m,)``; ``None`` for no radii, which makes the search simpler.
        bank_ranges: Rows of each bank as ``(start, stop)``: the first bank gives the image score, the last one the map.
    """

    features: torch.Tensor
    weights: torch.Tensor
    radii: torch.Tensor | None
    bank_ranges: tuple[Rows, ...]

    @property
    def parts(self) -> list[Rows]:
        """The banks, cut where any of them starts or stops, so that each bank contains all of a part or none of it."""
        edges = sorted({edge for rows in self.bank_ranges for edge in rows})
        return [part for part in pairwise(edges) if any(contains(rows, part) for rows in self.bank_ranges)]


class Search(Protocol):
    """Search of a memory bank."""

    def nearest(self, queries: torch.Tensor, part: Rows, known: Nearest | None = None) -> Nearest:
        """Find the nearest row of a part of the bank for each query.

        Args:
            queries: Shape ``(n, channels)``.
            part: One of :attr:`MemoryBank.parts`.
            known: Nearest rows of the parts before. Rows that are farther need not be found.

        Returns:
            The nearer of the known and the found rows, with their distances; infinite where no row counts.
        """


def contains(rows: Rows, part: Rows) -> bool:
    """Return whether the rows of a bank contain one of its parts."""
    return rows[0] <= part[0] < rows[1]


def nearer(first: Nearest | None, second: Nearest) -> Nearest:
    """Return the nearer of two rows for each query, the lower row if both are equally near."""
    if first is None:
        return second
    closer = (first[0] < second[0]) | ((first[0] == second[0]) & (first[1] < second[1]))
    return torch.where(closer, first[0], second[0]), torch.where(closer, first[1], second[1])


def select(nearest: Nearest, some: torch.Tensor) -> Nearest:
    """Return the nearest rows of some of the queries."""
    return nearest[0].index_select(0, some), nearest[1].index_select(0, some)


def put(nearest: Nearest, some: torch.Tensor, others: Nearest) -> Nearest:
    """Return the nearest rows with those of some queries replaced; a query named twice must have equal ones."""
    return nearest[0].index_put((some,), others[0]), nearest[1].index_put((some,), others[1])
