# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Which patches a threshold keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_softpatch.components import keep_mask
from samples import SCORES


@settings(deadline=None)
@given(SCORES, st.floats(0, 0.999))
def test_keep_mask(values, threshold):
    """The lowest scores are kept, ties stay together, and as many as requested are removed unless ties prevent it."""
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
