# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""How many training images are needed: the default settings on 10 to 200 good images of each set.

A cell has the image AUROC, the false alarms on good test images (5 % are asked for), and the defects found.

Example::

    python benchmarks/set_size.py --sets kolektor mtile visa_macaroni1 --save docs/results/set_size.json
"""

import tempfile
from pathlib import Path

import torch

from anomalib_softpatch.components import FeatureCache
from anomalib_softpatch.models import SoftPatchModel
from common import accuracy_parser, describe_machine, print_table, save_results
from robustness import NoisySet, check
from self_check import compose, measure

COUNTS = (10, 20, 50, 100, 200)
KEYS = ("image", "had", "found")


def main() -> None:
    """Measure all sets, and print the table."""
    parser = accuracy_parser(__doc__, ratios=[], sets=["kolektor", "mtile", "visa_macaroni1"])
    options = parser.parse_args()
    check(options, parser)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)
    headings = ["image AUROC / false alarms / found [%]", *(f"{count} images" for count in COUNTS)]
    title = "What a number of good training images is worth"
    rows: dict[str, list[list[dict[str, float]]]] = {}
    model = SoftPatchModel(options.layers, options.backbone).eval()
    with tempfile.TemporaryDirectory() as temporary:
        model.feature_cache = FeatureCache(model.feature_extractor, Path(temporary, "features"))
        for name in options.sets:
            for seed in options.seeds:
                features = NoisySet(name, seed, options, Path(temporary), model).features()
                for column, count in enumerate(COUNTS):
                    if count > len(features.train):
                        continue
                    _, figures = measure(model, compose(features, 0, count, seed), options, seed)
                    rows.setdefault(name, [[] for _ in COUNTS])[column].append(figures)
                    print(f"# {name}, seed {seed}, {count} images: {figures}", flush=True)
                save_results(options.save, title, headings, rows, KEYS)
    print_table(headings, rows, KEYS)


if __name__ == "__main__":
    main()
