# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Lower bounds of distances against the distances themselves, in float64."""

import numpy as np
import pytest
import torch

from anomalib_softpatch.components.search.bounds import (
    STRIP,
    BoundsInStrips,
    LeadingAxes,
    rounding_allowance,
    sufficient_axes,
)


@pytest.fixture
def rows():
    return torch.randn(200, 12, dtype=torch.double, generator=torch.Generator().manual_seed(0)) + 3


@pytest.mark.parametrize("count", [1, 5, 12])
def test_reduced_rows_are_never_farther_apart(rows, count):
    axes = torch.linalg.qr(torch.randn(12, 12, dtype=torch.double)).Q[:, :count]
    reduced = LeadingAxes(rows.mean(dim=0), axes).reduce(rows)
    assert reduced.shape == (200, count + 1)
    ours, true = (np.linalg.norm(x[:, None] - x, axis=2) for x in (reduced.numpy(), rows.numpy()))
    assert (ours <= true + 1e-9).all()
    if count == 12:  # all axes: the rest has no length
        np.testing.assert_allclose(ours, true, atol=1e-7)


def test_rows_are_reduced_in_the_type_of_the_axes(rows):
    assert LeadingAxes(rows.mean(dim=0), torch.eye(12)[:, :3]).reduce(rows).dtype == torch.float32


def test_bounds_within_limits():
    """The same pairs as a comparison of every bound, except those that were ruled out."""
    bounds = torch.rand(7, 3 * STRIP, generator=torch.Generator().manual_seed(1))
    limits = torch.tensor([-1.0, 0.0, 0.01, 0.1, 0.5, 1.0, 0.02])
    row, column = (bounds <= limits[:, None]).nonzero(as_tuple=True)
    strips = BoundsInStrips(bounds.clone())
    found = strips.within(limits)
    assert set(zip(*(x.tolist() for x in found), strict=True)) == set(zip(row.tolist(), column.tolist(), strict=True))
    assert found[0].tolist() == row.tolist()

    strips.rule_out(torch.tensor([5, 3]), torch.tensor([100, int(column[row == 3][0])]))
    left = set(zip(*(x.tolist() for x in strips.within(limits)), strict=True))
    assert len(left) == len(row) - 2
    assert (5, 100) not in left


def test_most_promising():
    bounds = torch.rand(9, 4 * STRIP, generator=torch.Generator().manual_seed(2))
    assert torch.equal(BoundsInStrips(bounds).most_promising(), bounds.argmin(dim=1))


def set_of_rows(spread, seed=0):
    """Rows vary along four axes, in pairs with a distance of ``spread``, and a little along the other axes."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(2000, 64)
    rows[:1000, :4] = 10 * torch.randn(1000, 4, generator=generator)
    rows[1000:] = rows[:1000]
    rows[1000:, 4:12] += spread * torch.randn(1000, 8, generator=generator) / 8**0.5
    return rows + 0.01 * torch.randn(2000, 64, generator=generator)


def test_axes_suffice_for_neighbors():
    """Four axes explain nearly all of the variance in both sets, but the distance between neighbors decides."""
    assert sufficient_axes(set_of_rows(0.0), 16) is None  # neighbors differ along all axes
    assert 8 < sufficient_axes(set_of_rows(0.7), 16).axes.shape[1] <= 12
    far = set_of_rows(0.0)[:1000]
    assert sufficient_axes(far, 16).axes.shape[1] == 4


def test_rounding_allowance_is_that_of_the_derivation():
    """Section 4 of docs/pruning.md, in plain numbers."""
    queries = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    reduced = torch.tensor([[3.0, 4.0]])
    found = rounding_allowance(queries, reduced, torch.tensor([4.0])).item()
    assert found == pytest.approx(2**-23 * ((4 + 8) * 4 + (2 + 64) * (2 * 5 + 2) ** 2))
