# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Constraints: which values options may have, declared once as data and checked in one place."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

FEATURE_DIMENSIONS = 4


@dataclass(frozen=True)
class Constraint:
    """What an option may be.

    Args:
        holds: Whether a value is allowed.
        text: The same for users, as the end of "must be ...".
    """

    holds: Callable[[Any], bool]
    text: str


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def at_least(minimum: float, unit: str = "") -> Constraint:
    """Allow numbers from a minimum on."""
    return Constraint(lambda value: _is_number(value) and value >= minimum, f"at least {minimum:g}{unit}")


SHARE_TO_REMOVE = Constraint(
    lambda value: _is_number(value) and 0 <= value < 1, "at least 0 and below 1 (a share of the patches)"
)
SHARE_TO_KEEP = Constraint(
    lambda value: _is_number(value) and 0 < value <= 1, "above 0 and at most 1 (a share of the patches)"
)
MIN_IMAGES = Constraint(
    lambda value: value == "auto" or (_is_number(value) and (0 < value < 1 or (value >= 1 and value % 1 == 0))),
    "'auto', a number of images of at least 1, or a share of the images above 0 and below 1",
)
NEIGHBORHOOD = Constraint(
    lambda value: value == "image" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0),
    "'image' or a radius of at least 0 positions",
)


def one_of(values: Collection[Any]) -> Constraint:
    """Allow some values."""
    return Constraint(lambda value: value in values, f"one of {sorted(values, key=str)}")


def check(options: Mapping[str, Any], constraints: Mapping[str, Constraint]) -> None:
    """Refuse the first option that breaks its constraint.

    Args:
        options: Values by name; those without a constraint are not looked at.
        constraints: Constraints by name. One of an option that holds several values applies to each of them.

    Raises:
        ValueError: If a value is not allowed; the message names the option, what is allowed, and the value.
    """
    for name, constraint in constraints.items():
        if name not in options:
            continue
        value = options[name]
        for each in value if isinstance(value, tuple) else (value,):
            if not constraint.holds(each):
                msg = f"{name} must be {constraint.text}, got {each!r}."
                raise ValueError(msg)


def check_discriminators(names: Sequence[str], known: Collection[str]) -> None:
    """Refuse names that are unknown, repeated, or none at all.

    Raises:
        ValueError: If the names are not one or more different known ones.
    """
    for name in names:
        if name not in known:
            msg = f"Unknown discriminator '{name}': choose from {', '.join(known)}."
            raise ValueError(msg)
    if not names or len(set(names)) < len(names):
        msg = f"discriminators must be different names and at least one, got {tuple(names)}."
        raise ValueError(msg)


def check_features(features: torch.Tensor) -> None:
    """Refuse features that do not come as a grid for each image.

    Raises:
        ValueError: If the shape is not ``(images, height, width, channels)``.
    """
    if features.ndim != FEATURE_DIMENSIONS:
        msg = f"Features must have the shape (images, height, width, channels), got {tuple(features.shape)}."
        raise ValueError(msg)
