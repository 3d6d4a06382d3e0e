# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""Test the report's estimate of how many images stand apart, against the true share of images with a defect.

The images are the training images of KolektorSDD and of the sets of ``synthetic.py``, with increasing noise (protocol
"overlap"), scored as in ``anomalib-softpatch report``. The table has the share of injected training images and, for
each seed, the interval of the estimate, or that there is none.

Example::

    python benchmarks/noise_level.py --threads 1
"""

import tempfile
from pathlib import Path

import torch

from ablation import extract
from anomalib_softpatch.components import score_patches
from anomalib_softpatch.models import SoftPatchModel
from anomalib_softpatch.report.image_scores import image_scores, rarity
from anomalib_softpatch.report.noise_level import noise_level
from common import accuracy_parser, describe_machine, print_table, save_results
from synthetic import SETS

DRAWN = ("gravel", "plates", "two kinds", "turned plates", "rare variant")


def main() -> None:
    """Print the table."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--sets", nargs="*", choices=DRAWN, default=list(DRAWN), help="drawn sets to measure, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(), flush=True)
    model = SoftPatchModel(arguments.layers, arguments.backbone).eval()
    headings = ["true share / lowest / highest [%]", *(f"{ratio:.0%} noise" for ratio in arguments.ratios)]
    root, category = arguments.root, arguments.category
    rows: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in (category, *arguments.sets):
            rows[name] = [[] for _ in arguments.ratios]
            for seed in arguments.seeds:
                arguments.root, arguments.category = root, name
                if name in SETS:
                    arguments.root, arguments.category = Path(temporary) / f"seed{seed}", name.replace(" ", "_")
                    arguments.root.mkdir(exist_ok=True)
                    SETS[name][0](arguments.root / arguments.category, seed)
                for ratio, column in zip(arguments.ratios, rows[name], strict=True):
                    features = extract(model, ratio, seed, overlap=True, rotated=False, arguments=arguments)
                    scores = score_patches(features.train, ("knn",), neighborhood=1, seed=seed).fused
                    level = noise_level(image_scores(rarity(scores)))
                    share = 100 * features.injected.mean()
                    print(f"# {name} {ratio:.0%} seed {seed}: {share:.1f} %, estimate: {level}", flush=True)
                    run = {"share": share, "known": float(level.known)}
                    column.append(run | ({"low": 100 * level.low, "high": 100 * level.high} if level.known else {}))
            save_results(
                arguments.save, "How many images stand apart, by the report", headings, rows, ["share", "low", "high"]
            )
    known = {name: row for name, row in rows.items() if any("low" in run for column in row for run in column)}
    print_table(headings, {name: [[r for r in c if "low" in r] for c in row] for name, row in known.items()},
                ["share", "low", "high"])  # fmt: skip
    for name in rows.keys() - known.keys():
        print(f"{name}: cannot tell, with any noise")


if __name__ == "__main__":
    main()
