# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""Compare rules for a threshold without labels: false alarms asked for, actual false alarms, and defects found.

Every rule uses the same fit of SoftPatchPlus, with its defaults, to noisy training images. All test images are labeled,
so that both shares can be counted. The rules are:

- ``median and spread``: the package's own, see :func:`anomalib_softpatch.components.out_of_bag.false_alarm_threshold`;
- ``quantile``: an image is anomalous if its conformal p-value among the out-of-bag scores is at most the share asked
  for. Each training image is left out of the memory bank for its own score;
- ``SuperADD``: 1.421 times the 95th percentile of the out-of-bag scores, whatever share was asked for;
- ``MEBin`` (AnomalyNCD, CVPR 2025; Anomalib's ``mebin_binarize``, whose search for connected regions would take hours
  here): an image is anomalous if the number of regions of its anomaly map above a threshold stays the same over some
  thresholds. Their range comes from all test images together, so that single images cannot be tested.

Columns are the shares asked for. ``labels`` is the share of defects found by a threshold that is chosen with labels to
give as many false alarms.

Example::

    python benchmarks/thresholds.py --sets kolektor mtile visa_macaroni1 --seeds 0 --cache features/
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_erosion, label

from anomalib_softpatch.components import FeatureCache
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.models import SoftPatchModel
from common import accuracy_parser, describe_machine, print_table, save_results
from robustness import ASKED, NO_OVERLAP, SETTINGS, NoisySet, check, fit, score

SUPERADD_PERCENTILE, SUPERADD_FACTOR = 0.95, 1.421
# MEBin's own defaults, for maps scaled to 0 to 255
STEP, SHORTEST_RUN, EROSION = 4, 4, np.ones((6, 6), dtype=bool)


def conformal_threshold(scores: torch.Tensor, share: float) -> float:
    """Return the score above which a conformal p-value is at most a share; infinite if there are too few scores."""
    ordered = scores.sort().values
    rank = math.ceil((1 - share) * (len(ordered) + 1))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


def mebin(maps: torch.Tensor) -> torch.Tensor:
    """Return which images MEBin calls anomalous, given their maps of shape ``(images, height, width)``."""
    peaks = maps.amax(dim=(1, 2))
    low, high = float(peaks.min()), float(peaks.max())
    levels = ((maps - low) / max(high - low, 1e-12) * 255).clamp_min(0).numpy()
    return torch.tensor([_has_stable_regions(level) for level in levels])


def _has_stable_regions(level: np.ndarray) -> bool:
    run, previous = 0, 0
    for threshold in range(255, 0, -STEP):
        mask = level > threshold
        regions = label(binary_erosion(mask, EROSION))[1] if mask.any() else 0
        run = run + 1 if regions == previous else 1
        previous = regions
        if regions and run >= SHORTEST_RUN:
            return True
    return False


def verdicts(scores: torch.Tensor, maps: torch.Tensor, training: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Return each rule's verdicts about the test images, for every share asked for.

    Args:
        scores: Scores of the test images.
        maps: Anomaly maps of the test images.
        training: Out-of-bag scores of the training images.
    """
    superadd = float(training.quantile(SUPERADD_PERCENTILE)) * SUPERADD_FACTOR
    stable = mebin(maps.flatten(0, -3))
    return {
        "median and spread": [scores > false_alarm_threshold(training, percent / 100) for percent in ASKED],
        "quantile": [scores > conformal_threshold(training, percent / 100) for percent in ASKED],
        "SuperADD": [scores > superadd for _ in ASKED],
        "MEBin": [stable for _ in ASKED],
    }


def main() -> None:
    """Measure all sets, and print a table."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.1, 0.4], sets=["kolektor"])
    parser.add_argument("--cache", type=Path, help="folder that keeps the features, so that later runs are faster")
    options = parser.parse_args()
    check(options, parser)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    model = SoftPatchModel(options.layers, options.backbone).eval()
    headings = ["false alarms / found / found with labels [%]", *(f"{percent} % asked for" for percent in ASKED)]
    title = "Thresholds without labels: false alarms / defects found / found with labels in %"
    rows: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        model.feature_cache = FeatureCache(model.feature_extractor, options.cache or Path(temporary, "features"))
        for name in options.sets:
            for seed in options.seeds:
                noisy_set = NoisySet(name, seed, options, Path(temporary), model)
                for protocol, column, ratio in noisy_set.columns():
                    if ratio == 0 and protocol == NO_OVERLAP:
                        continue  # the same training and test set as with overlap
                    features = noisy_set.features(ratio, protocol)
                    fit(model, features.train, SETTINGS["default"], options.coreset, seed)
                    assert model.out_of_bag is not None
                    scores, maps = score(model, features)
                    defective = features.labels.bool()
                    good = scores[~defective]
                    for rule, columns in verdicts(scores, maps, model.out_of_bag.image_scores).items():
                        row = f"{name}, {protocol}, {column}: {rule}"
                        runs = rows.setdefault(row, [[] for _ in ASKED])
                        for place, said in zip(runs, columns, strict=True):
                            had = float(said[~defective].float().mean())
                            found = float(said[defective].float().mean())
                            labeled = float((scores[defective] > good.quantile(1 - had)).float().mean())
                            place.append({"had": 100 * had, "found": 100 * found, "labels": 100 * labeled})
                        print(f"# {row}: {[run[-1] for run in runs]}", flush=True)
                    save_results(options.save, title, headings, rows, ["had", "found", "labels"])
    print_table(headings, rows, ["had", "found", "labels"])


if __name__ == "__main__":
    main()
