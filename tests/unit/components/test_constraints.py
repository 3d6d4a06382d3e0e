# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What options may be."""

import pytest

from anomalib_softpatch.components import constraints


@pytest.mark.parametrize(
    ("constraint", "allowed", "refused"),
    [
        (constraints.at_least(1), [1, 2.5, 10**9], [0, 0.99, -1, True, "1", None, float("nan")]),
        (constraints.SHARE_TO_REMOVE, [0, 0.0, 0.15, 0.999], [1, 1.0, -0.1, True, False, "0.1", None, float("nan")]),
        (
            constraints.MIN_IMAGES,
            ["auto", 1, 2, 3.0, 0.1, 10**6],
            [0, 0.0, -1, -0.1, 1.5, "many", "", True, False, None, float("nan"), float("inf")],
        ),
        (constraints.SHARE_TO_KEEP, [1, 1.0, 1e-9], [0, 0.0, 1.01, -1, True, "1", None, float("nan")]),
        (constraints.NEIGHBORHOOD, [0, 1, 99, "image"], [-1, 0.5, True, "window", None]),
        (constraints.one_of({False, "rank"}), [False, "rank"], [True, "lof", None]),
    ],
)
def test_constraints(constraint, allowed, refused):
    for value in allowed:
        constraints.check({"option": value}, {"option": constraint})
    for value in refused:
        with pytest.raises(ValueError, match="option must be ") as caught:
            constraints.check({"option": value}, {"option": constraint})
        assert str(caught.value) == f"option must be {constraint.text}, got {value!r}."


def test_one_constraint_for_several_values():
    constraints.check({"shares": (0.1, 0.2)}, {"shares": constraints.SHARE_TO_REMOVE})
    with pytest.raises(ValueError, match=r"shares must be .* got 2\."):
        constraints.check({"shares": (0.1, 2)}, {"shares": constraints.SHARE_TO_REMOVE})


def test_options_without_constraint_and_constraints_without_option():
    constraints.check({"free": object()}, {"other": constraints.at_least(0)})


def test_the_unit_is_named():
    with pytest.raises(ValueError, match=r"budget must be at least 0 GiB, got -1\."):
        constraints.check({"budget": -1}, {"budget": constraints.at_least(0, " GiB")})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("lof", "svm"), "Unknown discriminator 'svm': choose from lof, gaussian"),
        (("lof", "lof"), "different names and at least one"),
        ((), "different names and at least one"),
    ],
)
def test_discriminators(names, message):
    constraints.check_discriminators(("gaussian", "lof"), ("lof", "gaussian"))
    with pytest.raises(ValueError, match=message):
        constraints.check_discriminators(names, ("lof", "gaussian"))
