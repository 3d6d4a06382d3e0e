# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Out-of-bag neighbours against NumPy in float64, and the threshold against distributions that are known."""

import math

import numpy as np
import pytest
import torch

from anomalib_softpatch.components import NearestNeighborSearch, nearest_neighbors
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold, out_of_bag_neighbors


@pytest.mark.parametrize("search", [nearest_neighbors, NearestNeighborSearch()])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_neighbors_equal_numpy(search, share):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(3000, 12, generator=generator)
    left_out = torch.rand(3000, generator=generator) < share
    queries = bank[left_out][:40] if share else torch.randn(40, 12, generator=generator)
    left_out[:200] |= bool(share)  # all of the nearest of some queries
    distances, indices = out_of_bag_neighbors(search, torch.cat((queries, bank[:50])), bank, left_out)
    rows = torch.cat((queries, bank[:50])).double().numpy()
    expected = np.linalg.norm(rows[:, None] - bank.double().numpy()[None], axis=2)
    expected[:, left_out.numpy()] = np.inf
    np.testing.assert_array_equal(indices, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-5, atol=1e-6)


def test_all_rows_left_out():
    distances, _ = out_of_bag_neighbors(
        nearest_neighbors, torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, dtype=torch.bool)
    )
    assert distances.tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("false_alarms", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_false_alarms_are_those_asked_for(false_alarms, noise):
    """Logarithmically normal scores with defects far above: the share among normal ones, within what noise costs."""
    generator = np.random.default_rng(0)
    normal = np.exp(generator.normal(3.0, 0.1, 4000))
    defects = np.exp(generator.normal(3.8, 0.2, int(noise * 4000)))
    threshold = false_alarm_threshold(torch.from_numpy(np.concatenate((normal, defects))), false_alarms)
    had = (normal > threshold).mean()
    assert had < 1.3 * false_alarms + 0.005  # noise moves the median, and the threshold up with it
    if noise == 0:
        assert had == pytest.approx(false_alarms, rel=0.35)
    else:
        assert (defects > threshold).mean() > 0.9


def test_degenerate_scores():
    assert math.isnan(false_alarm_threshold(torch.tensor([]), 0.05))
    assert math.isnan(false_alarm_threshold(torch.tensor([math.inf, math.nan]), 0.05))
    assert false_alarm_threshold(torch.zeros(5), 0.05) == 0
    assert false_alarm_threshold(torch.tensor([0.0, 2.0, 2.0, math.inf]), 0.05) == pytest.approx(2.0)
