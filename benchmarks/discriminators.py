# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Discriminators: the batched local outlier factor against one scikit-learn fit for each grid position.

The features are 1,024 positions x 352 Kolektor images x 128 channels of MobileNetV2. The times of the other
discriminators are also printed.

Example::

    python benchmarks/discriminators.py
"""

import numpy as np
import torch
from sklearn.neighbors import LocalOutlierFactor

from anomalib_softpatch.components import DISCRIMINATORS, References
from common import PeakMemory, describe_machine, kolektor_features, measure, parser


def main() -> None:
    """Score all patches with each method, and print times, memory and agreement."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=352)
    arguments.add_argument("--positions", type=int, default=1024, help="positions that scikit-learn scores")
    arguments.add_argument("--repeats", type=int, default=3, help="the shortest time of ours counts")
    options = arguments.parse_args()
    if options.quick:
        options.images, options.positions, options.repeats = 48, 128, 1
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    features = kolektor_features(options.datasets, options.backbone, options.images)
    grid = features.shape[1] * features.shape[2]
    print(f"{grid} positions x {features.shape[0]} images x {features.shape[3]} dimensions, k = 6")
    for name, discriminator in DISCRIMINATORS.items():
        with PeakMemory() as memory:
            own = dict.fromkeys(discriminator.parameters, 6)
            scores, seconds = measure(lambda: discriminator.score(features, References(), **own), options.repeats)  # noqa: B023
        print(f"{name}, all positions at once: {seconds:.2f} s, {memory.peak / 2**20:.0f} MiB", flush=True)
        if name == "lof":
            factors, lof_seconds = scores, seconds

    positions = np.linspace(0, grid - 1, options.positions).astype(int)
    groups = features.flatten(1, 2).transpose(0, 1).contiguous().numpy()[positions]

    def fit_each() -> np.ndarray:
        return np.stack([-LocalOutlierFactor(n_neighbors=6).fit(group).negative_outlier_factor_ for group in groups])

    expected, seconds = measure(fit_each)
    total = seconds * grid / len(positions)
    origin = "measured" if len(positions) == grid else f"extrapolated from {len(positions)} positions"
    difference = np.abs(factors.flatten(1).numpy().T[positions] - expected) / expected
    print(f"scikit-learn lof, one fit a position: {total:.2f} s ({origin}), ratio {total / lof_seconds:.1f}")
    print(f"relative difference of the factors: largest {difference.max():.1e}, median {np.median(difference):.1e}")


if __name__ == "__main__":
    main()
