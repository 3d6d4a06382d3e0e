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
            :class:`~anomalib_softpatch.components.References` that choose which patches are compared, and of its own
            parameters. It returns scores of shape ``(images, height, width)``.
        weight_offset: Number that is added to a score to give the weight of the patch: 0 if inliers score about 1,
            otherwise 1.
        parameters: Constraints of its own parameters, by name.
    """

    score: Callable[..., torch.Tensor]
    weight_offset: float
    parameters: Mapping[str, Constraint]


DISCRIMINATORS: dict[str, Discriminator] = {}


def discriminator(weight_offset: float, **parameters: Constraint) -> Callable[[Score], Score]:
    """Add a function to the table under its own name; for the arguments see :class:`Discriminator`."""

    def add(score: Score) -> Score:
        DISCRIMINATORS[score.__name__] = Discriminator(score, weight_offset, parameters)
        return score

    return add


def check_discriminators(names: Sequence[str], options: Mapping[str, Any] | None = None) -> None:
    """Check names of discriminators and their options by name.

    Raises:
        ValueError: If a name is unknown or repeated, there is none, or an option is unknown or out of range.
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
