# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Options of models, commands and datamodules: defaults that they share, and which values are allowed.

Both are declared here once. Nothing is imported here that takes seconds, such as torch.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

SMALLEST_SIZE = 32  # pixels of an image's side: the least that backbones of five stages make a grid of

# Defaults that several places share; those of the backbone are in anomalib_softpatch.backbones
CORESET_SAMPLING_RATIO = 0.1  # in both papers
THRESHOLD = 0.15  # share of the patches that is removed: tau in SoftPatch
LOF_K = 6  # in both papers
MAX_REFERENCES = 4096
FALSE_ALARMS = 0.05


@dataclass(frozen=True)
class Constraint:
    """Whether a value of an option is allowed, and the rule in words, which ends the sentence "... must be"."""

    holds: Callable[[Any], bool]
    text: str


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def at_least(minimum: float, unit: str = "") -> Constraint:
    """Allow numbers that are not below a minimum."""
    return Constraint(lambda value: _is_number(value) and value >= minimum, f"at least {minimum:g}{unit}")


def whole_number(minimum: int) -> Constraint:
    """Allow whole numbers that are not below a minimum."""
    return Constraint(lambda value: _is_whole(value) and value >= minimum, f"a whole number of {minimum} or more")


def optional(constraint: Constraint) -> Constraint:
    """Also allow ``None``."""
    return Constraint(lambda value: value is None or constraint.holds(value), constraint.text)


SHARE = Constraint(lambda value: _is_number(value) and 0 < value < 1, "a share above 0 and below 1, for example 0.05")
SHARE_TO_REMOVE = Constraint(
    lambda value: _is_number(value) and 0 <= value < 1, "a share of at least 0 and below 1, for example 0.1"
)
SHARE_TO_KEEP = Constraint(
    lambda value: _is_number(value) and 0 < value <= 1, "a share above 0 and at most 1, for example 0.1"
)
MIN_IMAGES = Constraint(
    lambda value: value == "auto" or (_is_number(value) and (0 < value < 1 or (value >= 1 and value % 1 == 0))),
    "'auto', a number of images of at least 1, or a share of the images above 0 and below 1",
)
NEIGHBORHOOD = Constraint(
    lambda value: value == "image" or (_is_whole(value) and value >= 0),
    "'image' or a radius of at least 0 positions",
)
NOISE_RATIO = Constraint(
    lambda value: _is_number(value) and 0 <= value < math.inf, "a number of 0 or more, for example 0.1 for 10 %"
)

# The constraint of each option
CONSTRAINTS = {
    "batch_size": whole_number(1),
    "coreset_sampling_ratio": SHARE_TO_KEEP,
    "expected_defects": optional(SHARE),
    "false_alarms": SHARE,
    "fixed_threshold": optional(at_least(0)),
    "image_size": whole_number(SMALLEST_SIZE),
    "lof_k": whole_number(1),
    "max_references": whole_number(1),
    "memory_budget": optional(at_least(0, " GiB")),
    "min_images": MIN_IMAGES,
    "neighborhood": NEIGHBORHOOD,
    "noise_ratio": NOISE_RATIO,
    "num_neighbors": whole_number(1),
    "num_workers": whole_number(0),
    "score_smoothing": at_least(0, " patches"),
    "seed": whole_number(0),
    "set_aside": SHARE_TO_REMOVE,
    "stride": whole_number(1),
    "suspicious": SHARE_TO_REMOVE,
    "threshold": SHARE_TO_REMOVE,
    "thresholds": SHARE_TO_REMOVE,
    "tile": whole_number(SMALLEST_SIZE),
}


def check(**options: Any) -> None:
    """Refuse the first option that breaks its constraint in ``CONSTRAINTS``; each value of a tuple is checked.

    Raises:
        ValueError: If a value is not allowed; the message names the option, the value, and what is allowed.
    """
    for name, value in options.items():
        for each in value if isinstance(value, tuple) else (value,):
            check_value(name, each, CONSTRAINTS[name])


def check_value(name: str, value: object, constraint: Constraint) -> None:
    """Raise a ``ValueError`` if a value breaks a constraint, see :func:`check`."""
    if not constraint.holds(value):
        msg = f"{name}={value!r} must be {constraint.text}."
        raise ValueError(msg)


def check_choice(name: str, value: object, choices: Collection[Any]) -> None:
    """Raise a ``ValueError`` if a value is not one of the choices."""
    if value not in choices:
        msg = f"Unknown {name} {value!r}: choose from {', '.join(map(str, choices)) or 'none'}."
        raise ValueError(msg)
