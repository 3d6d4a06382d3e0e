# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The table of noise discriminators, to which each module of this folder adds its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from anomalib_softpatch.options import Constraint, check_choice, check_value

Score = TypeVar("Score", bound=Callable[..., torch.Tensor])


@dataclass(frozen=True)
class Discriminator:
    """A way to score patches.

    Args:
        score: Function of features of shape ``(images, height, width, dimensions)``, of the
            :class:`~anomalib_softpatch.components.References` that say which patches are compared, and of its own
            parameters. It returns scores of shape ``(images, height, width)``.
        weight_offset: Added to a score to make it the weight of its patch: 0 where inliers score about 1, else 1.
        parameters: Its own parameters by name, and what each may be.
    """

    score: Callable[..., torch.Tensor]
    weight_offset: float
    parameters: Mapping[str, Constraint]


DISCRIMINATORS: dict[str, Discriminator] = {}


def discriminator(weight_offset: float, **parameters: Constraint) -> Callable[[Score], Score]:
    """Add a function to the table, under its own name: arguments as of :class:`Discriminator`."""

    def add(score: Score) -> Score:
        DISCRIMINATORS[score.__name__] = Discriminator(score, weight_offset, parameters)
        return score

    return add


def check_discriminators(names: Sequence[str], options: Mapping[str, Any] | None = None) -> None:
    """Refuse names that are unknown, repeated, or none at all, and options by name that none of them has.

    Raises:
        ValueError: If the names are not one or more different known ones, or an option does not fit them.
    """
    for name in names:
        check_choice("discriminator", name, DISCRIMINATORS)
    if not names or len(set(names)) < len(names):
        msg = f"discriminators must be different names and at least one, got {tuple(names)}."
        raise ValueError(msg)
    known = {key: constraint for name in names for key, constraint in DISCRIMINATORS[name].parameters.items()}
    for key, value in (options or {}).items():
        check_choice("discriminator option", key, known)
        check_value(key, value, known[key])
