# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The threshold of out-of-bag scores against distributions that are known."""

import math

import numpy as np
import pytest
import torch

from anomalib_softpatch.components.out_of_bag import false_alarm_threshold


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
