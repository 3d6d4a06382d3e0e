# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Fused ranks against SciPy's."""

import numpy as np
import torch
from hypothesis import given, settings
from scipy.stats import rankdata

from anomalib_softpatch.components import fuse, ranks
from samples import SCORES


@settings(deadline=None)
@given(SCORES)
def test_ranks_equal_scipy(values):
    expected = (rankdata(values) - 1) / max(1, len(values) - 1)
    np.testing.assert_allclose(ranks(torch.tensor(values)), expected, atol=1e-6)


def test_fuse_averages_ranks():
    first, second = torch.tensor([[1.0, 5.0], [3.0, 3.0]]), torch.tensor([[9.0, 8.0], [7.0, 6.0]])
    expected = ((rankdata(first) - 1) + (rankdata(second) - 1)).reshape(2, 2) / 6
    np.testing.assert_allclose(fuse([first, second]), expected, atol=1e-6)
