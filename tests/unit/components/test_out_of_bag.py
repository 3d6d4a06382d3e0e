# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The threshold from out-of-bag scores against known distributions."""

import math

import numpy as np
import pytest
import torch

from anomalib_softpatch.components.out_of_bag import decided_threshold, false_alarm_threshold


@pytest.mark.parametrize("false_alarms", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_false_alarms_are_as_requested(false_alarms, noise):
    """Lognormal scores with defects far above: the share of false alarms is right, up to the effect of noise."""
    generator = np.random.default_rng(0)
    normal = np.exp(generator.normal(3.0, 0.1, 4000))
    defects = np.exp(generator.normal(3.8, 0.2, int(noise * 4000)))
    threshold = false_alarm_threshold(torch.from_numpy(np.concatenate((normal, defects))), false_alarms)
    rate = (normal > threshold).mean()
    assert rate < 1.3 * false_alarms + 0.005  # noise moves the median, and the threshold up with it
    if noise == 0:
        assert rate == pytest.approx(false_alarms, rel=0.35)
    else:
        assert (defects > threshold).mean() > 0.9


def test_degenerate_scores():
    assert math.isnan(false_alarm_threshold(torch.tensor([]), 0.05))
    assert math.isnan(false_alarm_threshold(torch.tensor([math.inf, math.nan]), 0.05))
    assert false_alarm_threshold(torch.zeros(5), 0.05) == 0
    assert false_alarm_threshold(torch.tensor([0.0, 2.0, 2.0, math.inf]), 0.05) == pytest.approx(2.0)


@pytest.mark.parametrize(("images", "false_alarms"), [(60, 0.05), (128, 0.05), (120, 0.01), (30, 0.2)])
def test_decisions_about_the_highest_scores_give_the_requested_share(images, false_alarms):
    """On average over many sets, for new scores of any distribution; known defects are left out."""
    generator = np.random.default_rng(images)
    rates = []
    for _ in range(400):
        good = generator.gamma(2.0, 3.0, images)
        scores = torch.from_numpy(np.concatenate((good, 8 + generator.gamma(2.0, 3.0, 6))))
        is_good, is_known = torch.arange(images + 6) < images, torch.zeros(images + 6, dtype=torch.bool)
        threshold, missing = decided_threshold(scores, is_known, false_alarms)
        while missing:
            is_known[torch.arange(len(scores))[is_good | ~is_known][missing]] = True
            left = is_good | ~is_known
            threshold, missing = decided_threshold(scores[left], is_known[left], false_alarms)
        assert is_known.sum() <= false_alarms * images + 8  # few decisions are needed
        rates.append((generator.gamma(2.0, 3.0, 500) > threshold).mean())
    assert np.mean(rates) == pytest.approx(int(false_alarms * (images + 1)) / (images + 1), rel=0.15)


def test_too_few_decisions_set_no_threshold():
    scores = torch.arange(40.0)
    decided = torch.zeros(40, dtype=torch.bool)
    decided[:39] = True  # all but the highest, whose decision is needed
    threshold, missing = decided_threshold(scores, decided, 0.05)
    assert math.isnan(threshold)
    assert missing == [39]
    decided[:] = True
    assert decided_threshold(scores, decided, 0.05) == (38.0, [])
    assert decided_threshold(scores[:19], decided[:19], 0.05) == (18.0, [])  # one of twenty
    threshold, missing = decided_threshold(scores[:18], decided[:18], 0.05)
    assert math.isnan(threshold)
    assert missing == []
