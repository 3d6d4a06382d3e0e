# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Ranks against SciPy, and the removal of the noisiest patches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from anomalib_softpatch.components import fuse, keep_mask, ranks

scores_strategy = st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=50)


@settings(deadline=None)
@given(scores_strategy)
def test_ranks_equal_scipy(values):
    expected = (rankdata(values) - 1) / max(1, len(values) - 1)
    np.testing.assert_allclose(ranks(torch.tensor(values)), expected, atol=1e-6)


def test_fuse_averages_ranks():
    first, second = torch.tensor([[1.0, 5.0], [3.0, 3.0]]), torch.tensor([[9.0, 8.0], [7.0, 6.0]])
    expected = ((rankdata(first) - 1) + (rankdata(second) - 1)).reshape(2, 2) / 6
    np.testing.assert_allclose(fuse([first, second]), expected, atol=1e-6)


@settings(deadline=None)
@given(scores_strategy, st.floats(0, 0.999))
def test_keep_mask(values, threshold):
    """The kept are the lowest, ties stay together, and as many go as asked for unless ties prevent it."""
    scores = torch.tensor(values)
    kept = keep_mask(scores, threshold)
    assert kept.any()
    wanted = max(1, len(values) - int(threshold * len(values)))
    assert kept.sum() >= wanted
    assert (scores[kept] < scores[kept].max()).sum() < wanted
    if not kept.all():
        assert scores[kept].max() < scores[~kept].min()


def test_large_inputs():
    """More values than torch.quantile takes (16 million)."""
    scores = torch.arange(17_000_000, dtype=torch.float32)
    assert keep_mask(scores, 0.5).sum() == pytest.approx(8_500_000, abs=2)
