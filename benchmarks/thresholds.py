# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""What thresholds without labels are worth: false alarms asked for against those had, and defects found.

The threshold comes from out-of-bag scores of the noisy training images; the test images are all labelled, so that both
shares can be counted. Beside it: Anomalib's threshold, the maximum of F1 on the labelled test images (a ceiling), and
what Anomalib does where all validation images are normal (the highest of their scores).

Example::

    python benchmarks/thresholds.py --ratios 0 0.1 0.2 0.4 --seeds 0 1 2
"""

import numpy as np
import torch
from sklearn.metrics import precision_recall_curve

from ablation import extract
from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.models import SoftPatchModel
from common import accuracy_parser, describe_machine, print_table, save_results
from robustness import SETTINGS

ASKED = (0.01, 0.02, 0.05, 0.1)


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold of the largest F1 on labelled images."""
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[min(int(f1.argmax()), len(thresholds) - 1)])


def main() -> None:
    """Print the table."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.1, 0.2, 0.4])
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(), flush=True)

    model = SoftPatchModel(arguments.layers, arguments.backbone).eval()
    results: dict[tuple[str, float], list[dict[str, float]]] = {}
    for ratio in arguments.ratios:
        for seed in arguments.seeds:
            features = extract(model, ratio, seed, overlap=True, rotated=False, arguments=arguments)
            options = dict(SETTINGS[arguments.setting])
            model.score_smoothing = options.pop("model.score_smoothing", 0.0)
            model.memory_bank_builder = DenoisingMemoryBank(
                **options, coreset_sampling_ratio=arguments.coreset, seed=seed
            )
            model.feature_store.append(features.train)
            model.fit()
            size = features.masks.shape[-2:]
            with torch.no_grad():
                scores = torch.cat([model.score(part, size).pred_score for part in features.test.split(8)])
            labels = features.labels.bool()
            normal, defective = scores[~labels], scores[labels]
            thresholds = {
                f"{share:.0%} false alarms asked for": false_alarm_threshold(model.out_of_bag.image_scores, share)
                for share in ASKED
            }
            thresholds["largest F1, with labels"] = best_threshold(labels.numpy(), scores.numpy())
            thresholds["highest normal score"] = float(normal.max())
            for name, threshold in thresholds.items():
                figures = {
                    "had": 100 * float((normal >= threshold).float().mean()),
                    "found": 100 * float((defective >= threshold).float().mean()),
                }
                results.setdefault((name, ratio), []).append(figures)
                print(f"# {ratio:.0%} seed {seed} {name}: {figures}", flush=True)
    names = dict.fromkeys(name for name, _ in results)
    headings = ["false alarms had / defects found [%]", *(f"{ratio:.0%} noise" for ratio in arguments.ratios)]
    rows = {name: [results[name, ratio] for ratio in arguments.ratios] for name in names}
    title = (
        f"False alarms had / defects found in %, {arguments.category}, protocol overlap, setting {arguments.setting}"
    )
    save_results(arguments.save, title, headings, rows, ["had", "found"])
    print_table(headings, rows, ["had", "found"])


if __name__ == "__main__":
    main()
