# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Plain search: all rows, in matrix products that every export target has."""

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.search.bank import Nearest
from anomalib_softpatch.components.tracing import is_traced, without_autocast

# Bank rows and queries in one matrix product, to limit memory. Exported graphs, which take any number of queries at
# once, need a few tensors of (queries x BANK_BLOCK) elements.
BANK_BLOCK = 4096
QUERY_BLOCK = 4096
# Neighboring rows of the bank whose minimum a graph takes first
RUN = 16


def nearest_neighbors(
    queries: torch.Tensor,
    bank: torch.Tensor,
    k: int = 1,
    within: tuple[int, int] | None = None,
    needed: torch.Tensor | None = None,
    norms: torch.Tensor | None = None,
    radii: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest rows of the bank by Euclidean distance, exactly, in operations that every export target has.

    Matrix products find the neighbors. Their distances are computed from differences, which keeps digits where a query
    is close to its neighbor. (Anomalib's PatchCore uses the expanded square.)

    The distance to a row with a support radius is the mutual reachability distance ``max(distance, radius)``, see
    :mod:`anomalib_softpatch.components.support_radii`.

    Args:
        queries: Shape ``(n, d)``.
        bank: Shape ``(m, d)``.
        k: Number of neighbors, at most m.
        within: Rows ``(start, stop)`` of the bank to search, which a graph then does not store in addition to the bank.
            Default: all.
        needed: Boolean scalar, only for ``k = 1``: if false, the result is not used, and a graph searches only a few
            rows of each block. Default: true.
        norms: Squared lengths of the rows of the bank, shape ``(m,)``; infinity where a row does not count. Default:
            they are computed.
        radii: Support radii of the rows of the bank, shape ``(m,)``. Default: none.

    Returns:
        Distances and indices (rows of the bank), both of shape ``(n, k)``, nearest first.

    Example:
        >>> distances, indices = nearest_neighbors(torch.randn(1024, 512), torch.randn(10_000, 512))
        >>> distances.shape, indices.shape
        (torch.Size([1024, 1]), torch.Size([1024, 1]))
    """
    traced = is_traced()
    first, last = within or (0, len(bank))
    if not traced and len(queries) > QUERY_BLOCK:
        parts = [
            nearest_neighbors(part, bank, k, within, norms=norms, radii=radii) for part in queries.split(QUERY_BLOCK)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    # |q - b|^2 without |q|^2, which is the same for all b
    scaled, norms = -2 * queries, squared_lengths(bank) if norms is None else norms
    smallest = None if radii is None else radii.square()
    lengths = scaled.square().sum(dim=1, keepdim=True) / 4  # from the scaled queries, which compression does not change
    nearest = torch.zeros_like(queries[:, :1], dtype=torch.long)
    for start in range(first, last, BANK_BLOCK):
        stop = min(start + BANK_BLOCK, last)
        runs = None
        if traced and stop - start < len(bank):
            # Runtimes would work on all blocks at once, and store each of them in addition to the bank. Rows whose
            # numbers depend on the result of the previous block (by adding zero) cannot be read early or copied.
            after = nearest.amin(dim=(0, 1)).clamp(max=0)
            runs = _first_of_runs(start, stop, after, needed) if k == 1 else None
            rows = torch.arange(start, stop, device=bank.device) + after if runs is None else _members(runs, stop)
            part, part_norms = bank.index_select(0, rows), norms.index_select(0, rows)
            part_smallest = None if smallest is None else smallest.index_select(0, rows)
        else:
            part, part_norms = bank[start:stop], norms[start:stop]
            part_smallest = None if smallest is None else smallest[start:stop]
        with without_autocast(queries.device):
            squares = F.linear(scaled, part, part_norms)  # exported without transposing the bank
        if part_smallest is not None:
            squares = torch.maximum(squares, part_smallest - lengths)
        if runs is not None:
            value, index = _least(squares, runs.shape[0])
        elif k == 1:  # much faster than topk
            value, index = squares.min(dim=1, keepdim=True)
        else:
            value, index = squares.topk(min(k, stop - start), dim=1, largest=False)
        index = (index + start).clamp(max=stop - 1)  # a run may repeat the block's last row
        if start == first:
            values, nearest = value, index
        elif k == 1:
            closer = value < values
            values, nearest = torch.where(closer, value, values), torch.where(closer, index, nearest)
        else:
            values, best = torch.cat((values, value), dim=1).topk(min(k, stop - first), dim=1, largest=False)
            nearest = torch.cat((nearest, index), dim=1).gather(1, best)
    distances = (queries[:, None] - bank[nearest]).square().sum(dim=2).sqrt()
    return distances if radii is None else torch.maximum(distances, radii[nearest]), nearest


def nearest_row(queries: torch.Tensor, bank: torch.Tensor, **options: Any) -> Nearest:
    """Find the nearest row of the bank by :func:`nearest_neighbors`, with ``k = 1``."""
    distances, rows = nearest_neighbors(queries, bank, **options)
    return distances.squeeze(1), rows.squeeze(1)


def _first_of_runs(start: int, stop: int, after: torch.Tensor, needed: torch.Tensor | None) -> torch.Tensor:
    """Return the first row of each run of a block; only that of its first run if the block is not needed."""
    runs = torch.arange(start, stop, RUN, device=after.device) + after
    return runs if needed is None else runs[(needed | (runs == start)).nonzero().squeeze(1)]


def _members(runs: torch.Tensor, stop: int) -> torch.Tensor:
    """Return the rows of runs, the first rows of all runs first; beyond the end, the last row again."""
    return (runs + torch.arange(RUN, device=runs.device)[:, None]).clamp(max=stop - 1).flatten()


def _least(squares: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest value of each query among rows in runs, and the first row that has it."""
    # Runtimes find minima several times faster than minima with their places
    best = squares.view(-1, RUN, count).amin(dim=1).argmin(dim=1, keepdim=True)
    columns = torch.arange(RUN, device=squares.device) * count + best
    value, place = squares.gather(1, columns).min(dim=1, keepdim=True)
    return value, best * RUN + place


def squared_lengths(bank: torch.Tensor, left_out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the squared lengths of the rows of a bank, infinity where they are left out."""
    parts = (bank,) if is_traced() else bank.split(BANK_BLOCK)  # all squares at once would need as much memory again
    lengths = torch.cat([part.square().sum(dim=1) for part in parts])
    return lengths if left_out is None else lengths.masked_fill(left_out, torch.inf)
