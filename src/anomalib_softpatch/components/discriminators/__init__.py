# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Noise discriminators: each scores every training patch, the higher the more likely it is noise.

A new discriminator is a function with the arguments of those here, in a module of its own, and a line in
``DISCRIMINATORS``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from anomalib_softpatch.components.discriminators.gaussian import gaussian
from anomalib_softpatch.components.discriminators.knn import knn
from anomalib_softpatch.components.discriminators.lof import local_outlier_factor, lof
from anomalib_softpatch.components.discriminators.nearest import nearest
from anomalib_softpatch.components.references import References

__all__ = [
    "DISCRIMINATORS",
    "Discriminator",
    "gaussian",
    "knn",
    "local_outlier_factor",
    "lof",
    "nearest",
]


@dataclass(frozen=True)
class Discriminator:
    """A way to score patches.

    Args:
        score: Function of features, references and k that returns scores of shape ``(images, height, width)``.
        weight_offset: Added to a score to make it the weight of its patch: 0 where inliers score about 1, else 1.
    """

    score: Callable[[torch.Tensor, References, int], torch.Tensor]
    weight_offset: float


DISCRIMINATORS = {
    "lof": Discriminator(lof, weight_offset=0.0),
    "nearest": Discriminator(nearest, weight_offset=1.0),
    "gaussian": Discriminator(gaussian, weight_offset=1.0),
    "knn": Discriminator(knn, weight_offset=1.0),
}
