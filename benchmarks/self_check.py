# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""Test whether the self-check of a fit distinguishes bad runs from good ones, by the labels of the test images.

Every set is trained clean, with noise of 10 % and 40 % of the good images, with a third of all images bad, and on 6, 20
and 44 good images. Two sets are also mixed half and half, and tested on both. At most 150 images are trained on. The
defects that are trained on leave the test set. Solar cells have their own noise.

By a definition that was fixed before the first measurement, a run is bad if

- its image AUROC is below 70 %, or
- the false alarms on good test images are more than twice the 5 % asked for, or
- it finds less than half of the defects that a threshold with labels finds at 5 % of false alarms.

The check is right if its verdict is "trust it" for a good run, or anything else for a bad run. The columns of the table
are its verdicts.

Example::

    python benchmarks/self_check.py --sets kolektor mtile visa_macaroni1 --save docs/results/self_check.json
    python benchmarks/self_check.py --cuts docs/results/self_check.json  # what rules fitted to these runs could say
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from ablation import Features
from anomalib_softpatch.components import FeatureCache
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.components.self_check import FACTOR, LOOK, REFUSE, TRUST, self_check
from anomalib_softpatch.models import SoftPatchModel
from common import accuracy_parser, describe_machine, print_table, save_results
from robustness import SETTINGS, SOLAR, NoisySet, aurocs, check, fit, score

ASKED = 0.05
MOST = 150
LOWEST_AUROC = 70.0
VERDICTS = (TRUST, LOOK, REFUSE)
KEYS = ("image", "had", "found", "labeled")
# Facts that are known without labels
FACTS = ("images", "scored", "above", "low", "high", "repeatability", "radii", "same place")
# Share of defects among the training images, and the number of images
CONDITIONS = {
    "clean": (0.0, MOST),
    "10 % noise": (0.1 / 1.1, MOST),
    "40 % noise": (0.4 / 1.4, MOST),
    "a third bad": (1 / 3, MOST),
    "44 images": (0.0, 44),
    "20 images": (0.0, 20),
    "6 images": (0.0, 6),
}


@dataclass
class Folder:
    """Training images as a user may have them, and test images with labels."""

    train: torch.Tensor
    test: torch.Tensor
    labels: torch.Tensor


def compose(features: Features, share: float, count: int, seed: int) -> Folder:
    """Take training images from a set, and add some of the defective test images, which leave the test set.

    Args:
        features: Features of the set, without noise.
        share: Share of defects. At most half of the defects are moved; if these are too few, there are fewer images.
        count: Number of images, or fewer if the set has fewer.
        seed: Seed of the choice.
    """
    generator = np.random.default_rng([seed, count, round(1000 * share)])
    good = generator.permutation(len(features.train))
    defects = generator.permutation(np.flatnonzero(features.labels.numpy()))[: int(features.labels.sum()) // 2]
    bad = min(len(defects), round(share * min(count, len(good))))
    normal = min(count, len(good)) if not bad else min(len(good), round(bad * (1 - share) / share))
    train = torch.cat((features.train[good[:normal]], features.test[defects[:bad]]))
    keep = torch.ones(len(features.labels), dtype=torch.bool)
    keep[defects[: len(defects) * bool(bad)]] = False
    return Folder(train, features.test[keep], features.labels[keep])


def mix(one: Folder, other: Folder) -> Folder:
    """Combine half of each set's training images, and all test images."""
    train = torch.cat([folder.train[: len(folder.train) // 2] for folder in (one, other)])
    return Folder(train, torch.cat((one.test, other.test)), torch.cat((one.labels, other.labels)))


def folders(options: argparse.Namespace, root: Path, model: SoftPatchModel) -> Iterator[tuple[str, int, Folder]]:
    """Yield the images for training and test, with their name and seed."""
    for seed in options.seeds:
        before: tuple[str, Folder] | None = None
        for name in options.sets:
            features = NoisySet(name, seed, options, root, model).features()
            images = len(features.train)
            if name == SOLAR:  # with noise of its own
                yield f"{name}, {MOST} images as they are", seed, compose(features, 0, MOST, seed)
                yield f"{name}, 44 images as they are", seed, compose(features, 0, 44, seed)
                continue
            possible = {
                text: (share, count)
                for text, (share, count) in CONDITIONS.items()
                if images >= MOST or text in {"clean", "44 images"}
            }
            for text, (share, count) in possible.items():
                yield f"{name}, {text}", seed, compose(features, share, count, seed)
            clean = compose(features, 0, MOST, seed)
            if before is not None:
                yield f"{before[0]} and {name}, mixed", seed, mix(before[1], clean)
            before = name, clean


def measure(
    model: SoftPatchModel, folder: Folder, options: argparse.Namespace, seed: int
) -> tuple[str, dict[str, float]]:
    """Fit the default settings; return the check's verdict, and the numbers in %."""
    seconds = fit(model, folder.train, SETTINGS["default"], options.coreset, seed)
    assert model.out_of_bag is not None
    assert model.fit_facts is not None
    threshold = false_alarm_threshold(model.out_of_bag.image_scores, ASKED)
    said = self_check(model.fit_facts, threshold, ASKED)
    # Maps are not used, and may be small
    features = Features(
        folder.train, np.empty(0), folder.test, folder.labels, torch.zeros(len(folder.test), 64, 64, dtype=torch.bool),
        np.empty(0), [], np.empty(0),
    )  # fmt: skip
    scores, maps = score(model, features)
    defective = folder.labels.bool()
    labeled = scores[~defective].quantile(1 - ASKED)
    figures = aurocs(features, scores, maps) | {
        "had": 100 * float((scores[~defective] > threshold).float().mean()),
        "found": 100 * float((scores[defective] > threshold).float().mean()),
        "labeled": 100 * float((scores[defective] > labeled).float().mean()),
    }
    bad = (
        figures["image"] < LOWEST_AUROC
        or figures["had"] > 100 * FACTOR * ASKED
        or figures["found"] < figures["labeled"] / 2
    )
    low, high = said.interval or (0.0, 1.0)
    figures |= {
        "seed": seed,
        "images": len(folder.train),
        "scored": len(said.facts.scores),
        "above": said.above,
        "low": 100 * low,
        "high": 100 * high,
        "in interval": float(100 * low <= figures["had"] <= 100 * high),
        "about": float("about" in said.false_alarms),
        "repeatability": said.facts.repeatability if said.facts.repeatability is not None else float("nan"),
        "radii": 100 * said.facts.radii,
        "same place": 100 * said.facts.same_place if said.facts.same_place is not None else float("nan"),
        "bad": float(bad),
        "right": float(bad != (said.verdict == TRUST)),
        "fit": seconds,
    }
    return said.verdict, figures


def print_cuts(file: Path) -> None:
    """Print for how many runs rules that were fitted to the truth are right: cuts of single facts, and of all facts.

    Rules on all facts are fitted to all runs, and then to the runs of other sets than the one that they are tested on.
    A mixture belongs to both of its sets, and images at full size belong to the same set as smaller ones.

    Args:
        file: Saved results of this benchmark.
    """
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    names, runs = zip(*((name, run) for name, columns in rows.items() for cell in columns for run in cell), strict=True)
    bad = np.array([run["bad"] for run in runs], dtype=bool)
    for fact in FACTS:
        values = np.array([run[fact] for run in runs])
        verdicts = [side * (values - cut) >= 0 for cut in values for side in (1, -1)] + [np.zeros_like(bad)]
        print(f"{fact}: right for {max(int((verdict == bad).sum()) for verdict in verdicts)} of {len(runs)}")
    facts = np.array([[run[fact] for fact in FACTS] for run in runs])
    sets = [frozenset(each.removesuffix("_full") for each in name.split(",")[0].split(" and ")) for name in names]
    rules = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression()),
        **{
            f"decision tree, depth {depth}": DecisionTreeClassifier(max_depth=depth, random_state=0)
            for depth in (1, 2, 3)
        },
        "random forest": RandomForestClassifier(500, random_state=0),
    }
    for name, rule in rules.items():
        same = int((rule.fit(facts, bad).predict(facts) == bad).sum())
        other = 0
        for own in set(sets):
            known = np.array([not own & each for each in sets])
            judged = np.array([own == each for each in sets])
            other += int((rule.fit(facts[known], bad[known]).predict(facts[judged]) == bad[judged]).sum())
        print(f"{name}: right for {same} of {len(runs)} runs it was fitted to, for {other} with their set left out")


def main() -> None:
    """Measure all folders, and print the table."""
    parser = accuracy_parser(__doc__, ratios=[], sets=["kolektor", "mtile", "visa_macaroni1"])
    parser.add_argument("--cache", type=Path, help="folder that keeps the features, so that later runs are faster")
    parser.add_argument(
        "--cuts", type=Path, help="measure nothing: print the results of rules that are fitted to a saved file"
    )
    parser.set_defaults(seeds=[0])
    options = parser.parse_args()
    if options.cuts is not None:
        print_cuts(options.cuts)
        return
    check(options, parser)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)
    rows: dict[str, list[list[dict[str, float]]]] = {}
    headings = ["image AUROC / false alarms / found / found with labels [%]", *VERDICTS]
    model = SoftPatchModel(options.layers, options.backbone).eval()
    title = ""
    with tempfile.TemporaryDirectory() as temporary:
        model.feature_cache = FeatureCache(model.feature_extractor, options.cache or Path(temporary, "features"))
        for name, seed, folder in folders(options, Path(temporary), model):
            verdict, figures = measure(model, folder, options, seed)
            text = f"{name}: {'bad' if figures['bad'] else 'good'}"
            row = rows.setdefault(text, [[] for _ in VERDICTS])
            row[VERDICTS.index(verdict)].append(figures)
            shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
            print(f"# {text}: {verdict}: {shown}", flush=True)
            runs = [run for columns in rows.values() for column in columns for run in column]
            right, held = (sum(run[key] for run in runs) for key in ("right", "in interval"))
            title = (
                f"What the self-check said of each run (right about {right:.0f} of {len(runs)}), and what the test "
                f"images say; {held:.0f} times the false alarms were in the interval that it gave"
            )
            save_results(options.save, title, headings, rows, KEYS)
    print(f"\n{title}\n")
    print_table(headings, rows, KEYS)


if __name__ == "__main__":
    main()
