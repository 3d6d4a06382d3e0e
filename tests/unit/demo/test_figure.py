# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The demo's figure: scores of several models on one scale."""

import numpy as np
import pytest

from anomalib_softpatch.demo.figure import relative_scores


def test_scores_are_relative_to_those_of_good_images():
    good = np.random.default_rng(0).permutation(1001.0 * np.arange(1001)).reshape(7, 11, 13)
    maps = np.array([[[500 * 1001.0, 1000 * 1001.0]]])  # the median, and the highest of 1,001
    np.testing.assert_allclose(relative_scores(maps, good), [[[0, 500 / 499]]])


@pytest.mark.parametrize(("factor", "offset"), [(0.01, 0), (30, 5)])
def test_a_models_own_scale_does_not_matter(factor, offset):
    rng = np.random.default_rng(0)
    good, maps = rng.normal(size=(3, 16, 16)), rng.normal(2, 3, size=(2, 16, 16))
    maps[1] *= 100  # the strength of one image changes nothing in another
    expected = relative_scores(maps[:1], good)
    np.testing.assert_allclose(relative_scores(factor * maps + offset, factor * good + offset)[:1], expected)
