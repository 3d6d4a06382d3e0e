# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Lower bounds of distances against the distances themselves, in float64."""

import numpy as np
import pytest
import torch

from anomalib_softpatch.components.pruning import GROUP_SIZE, GroupedBounds, LeadingAxes


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
    if count == 12:  # nothing is left out
        np.testing.assert_allclose(ours, true, atol=1e-7)


def test_rows_are_reduced_in_the_type_of_the_axes(rows):
    assert LeadingAxes(rows.mean(dim=0), torch.eye(12)[:, :3]).reduce(rows).dtype == torch.float32


def test_bounds_within_limits():
    """As many pairs as a look at every bound finds, less those that were ruled out."""
    bounds = torch.rand(7, 3 * GROUP_SIZE, generator=torch.Generator().manual_seed(1))
    limits = torch.tensor([-1.0, 0.0, 0.01, 0.1, 0.5, 1.0, 0.02])
    row, column = (bounds <= limits[:, None]).nonzero(as_tuple=True)
    grouped = GroupedBounds(bounds.clone())
    found = grouped.within(limits)
    assert set(zip(*(x.tolist() for x in found), strict=True)) == set(zip(row.tolist(), column.tolist(), strict=True))
    assert found[0].tolist() == row.tolist()

    grouped.rule_out(torch.tensor([5, 3]), torch.tensor([100, int(column[row == 3][0])]))
    left = set(zip(*(x.tolist() for x in grouped.within(limits)), strict=True))
    assert len(left) == len(row) - 2
    assert (5, 100) not in left


def test_most_promising():
    bounds = torch.rand(9, 4 * GROUP_SIZE, generator=torch.Generator().manual_seed(2))
    promising = GroupedBounds(bounds).most_promising(2)
    assert promising[:, 0].tolist() == bounds.argmin(dim=1).tolist()
    assert (promising[:, 0] // GROUP_SIZE != promising[:, 1] // GROUP_SIZE).all()
    second = bounds.gather(1, promising[:, 1:]).squeeze(1)
    smallest = bounds.view(9, 4, GROUP_SIZE).amin(dim=2).sort(dim=1).values[:, 1]
    assert torch.equal(second, smallest)
