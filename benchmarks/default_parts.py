# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""The gain from each default of SoftPatchPlus: image and pixel AUROC without it, or with another value.

Every row changes one thing. All are fitted to the same features. Both protocols are tested with one fit, since the
injected images are the same.

Example::

    python benchmarks/default_parts.py --sets kolektor mtile visa_macaroni1 --save docs/results/default_parts.json
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureCache, FeatureStore
from anomalib_softpatch.components.memory_bank import DenoisingResult
from anomalib_softpatch.components.support_radii import calibrate
from anomalib_softpatch.models import SoftPatchModel
from common import accuracy_parser, describe_machine, print_table, save_results
from results import Rows
from robustness import NO_OVERLAP, OVERLAP, SETTINGS, Features, NoisySet, aurocs, check, heading, score

KEYS = ("image", "pixel")
SMOOTHING = "model.score_smoothing"
DEFAULT = SETTINGS["default"]
# Factors of the distances to the k-th nearest images, instead of the default ones
SUPPORTS = {
    "one other image must show it": {1: 1.0},
    "two other images must show it": {2: 1.0},
    "three other images must show it": {3: 1.0},
}
# Changes of the default that need their own fit
FITS = {
    "compared at the same position": {"neighborhood": 0},
    "15 % of the patches removed before": {"thresholds": (0.15,)},
}


def fit(store: FeatureStore, changes: dict[str, Any], coreset: float, seed: int) -> DenoisingResult:
    """Fit the default with some changes."""
    options = {name: value for name, value in DEFAULT.items() if not name.startswith("model.")} | changes
    return DenoisingMemoryBank(**options, coreset_sampling_ratio=coreset, seed=seed).fit(store)


def variants(store: FeatureStore, coreset: float, seed: int) -> Iterator[tuple[str, DenoisingResult, float]]:
    """Yield a name, the fitted model, and the smoothing of the scores.

    Args:
        store: Features of the training images.
        coreset: Size of the memory bank as a share of the patches.
        seed: Seed of the fits.
    """
    smoothing = float(DEFAULT[SMOOTHING])
    result = fit(store, {}, coreset, seed)
    support, scores = result.support_images, result.scores
    assert support is not None
    assert scores is not None
    yield "default", result, smoothing
    yield "no smoothing", result, 0.0
    yield "no radii", replace(result, radii=torch.zeros_like(result.radii)), smoothing
    unscaled = replace(support, scale=1.0)
    yield "radii not calibrated", replace(result, radii=unscaled.radii(result.support)), smoothing
    for name, factors in SUPPORTS.items():
        radii = unscaled.radii(factors)
        scale = calibrate(store, result.features, result.indices, result.groups, radii, scores.fused)
        yield name, replace(result, radii=scale * radii), smoothing
    for name, changes in FITS.items():
        yield name, fit(store, changes, coreset, seed), smoothing


def measure(noisy_set: NoisySet, ratio: float, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield rows and numbers of a noise ratio."""
    model, seed = noisy_set.model, noisy_set.seed
    folders: dict[str, Features] = {OVERLAP: noisy_set.features(ratio)}
    injected = int(folders[OVERLAP].injected.sum())
    if 2 * injected <= int(folders[OVERLAP].labels.sum()):
        folders[NO_OVERLAP] = noisy_set.features(ratio, NO_OVERLAP)
        assert torch.equal(folders[NO_OVERLAP].train, folders[OVERLAP].train)
    store = FeatureStore()
    store.append(folders[OVERLAP].train)
    for name, result, smoothing in variants(store, options.coreset, seed):
        model.score_smoothing = smoothing
        model.set_memory_bank(result)
        for protocol, features in folders.items():
            scores, maps = score(model, features)
            figures = {"seed": float(seed)} | aurocs(features, scores, maps)
            yield f"{noisy_set.name}, {protocol}: {name}", figures


def main() -> None:
    """Measure all sets, and print the table."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.1, 0.4], sets=["kolektor", "mtile", "visa_macaroni1"])
    parser.add_argument("--cache", type=Path, help="folder that keeps the features, so that later runs are faster")
    parser.set_defaults(seeds=[0])
    options = parser.parse_args()
    check(options, parser)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)
    headings = ["image / pixel AUROC [%]", *map(heading, options.ratios)]
    title = f"Changes of one part of the default: image / pixel AUROC in %, coreset {options.coreset:.3g}"
    rows: Rows = {}
    model = SoftPatchModel(options.layers, options.backbone).eval()
    with tempfile.TemporaryDirectory() as temporary:
        model.feature_cache = FeatureCache(model.feature_extractor, options.cache or Path(temporary, "features"))
        for name in options.sets:
            for seed in options.seeds:
                noisy_set = NoisySet(name, seed, options, Path(temporary), model)
                for column, ratio in enumerate(options.ratios):
                    for row, figures in measure(noisy_set, ratio, options):
                        rows.setdefault(row, [[] for _ in options.ratios])[column].append(figures)
                        shown = ", ".join(f"{key} {value:.1f}" for key, value in figures.items())
                        print(f"# {row}, {heading(ratio)}: {shown}", flush=True)
                    save_results(options.save, title, headings, rows, KEYS)
    print_table(headings, rows, KEYS)


if __name__ == "__main__":
    main()
