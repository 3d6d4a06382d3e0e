# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""Robustness of the memory banks on many sets: AUROC and thresholds with clean and with noisy training images.

Every set is measured under both protocols: "overlap", where the injected images stay in the test set, and "no
overlap", where they leave it. Under "no overlap", a noise ratio is left out (n/a) if it would take more than half of
the anomalous images out of the test set; the column "most" has the largest ratio that does not. Columns state the share
of noise among all training images: a ratio of 40 % is 28.6 %. Sets that have their own noise, or are made for one
question, are measured as they are.

All settings are fitted to the same features. They are compared with "PatchCore, trained clean": without the noise, and
tested on the same images. ``--save`` has the numbers of every run:

- ``image``, ``pixel``: AUROC in %; ``image distance``, ``pixel distance``: difference from PatchCore, trained clean, in
  points;
- ``share``: noise among the training images in %; ``doubtful``: the same with images that may have a defect;
- ``ranking``, ``ranking out of bag``: AUROC of ranking the training images with noise first, by the noise scores and by
  the out-of-bag scores;
- ``had 5``, ``found 5``: false alarms on good test images and defects found, in %, at the threshold without labels for
  5 % of false alarms (1 and 10 accordingly); ``labeled 5``: defects found at the threshold that 5 % of the good test
  images exceed;
- ``variant``: false alarms on a rare variant of good images at that threshold;
- ``patch``, ``left0``, ``left1``, ``removed0``, ``removed1``: AUROC of the patch scores, share of the noisy patches
  that stays in each bank, share of all patches to remove from it;
- ``fit``: processor time of the fit in seconds, without the features.

Run again with the same file, the script continues where it stopped.

Example::

    python benchmarks/robustness.py --sets kolektor mtile visa_macaroni1 gravel plates "turned plates" \
        --seeds 0 1 2 --save robustness.json --plot robustness.png --cache features/
    python benchmarks/robustness.py --sets solar --elpv elpv/  # pip download --no-deps elpv-dataset, and unzip it there
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ablation import PATCHCORE, PLUS, Features, extract
from anomalib_softpatch.components import DenoisingMemoryBank, FeatureCache
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.data.noise import largest_ratio
from anomalib_softpatch.models import SoftPatchModel
from anomalib_softpatch.report.image_scores import image_scores
from common import COMMIT, accuracy_parser, describe_machine, measure_processor, new_file, print_table, save_results
from synthetic import SETS as DRAWN

Figures = dict[str, float]
Rows = dict[str, list[list[Figures]]]

# Arguments of DenoisingMemoryBank, and those of SoftPatchModel after "model."
SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": PATCHCORE,
    "softpatch": {},
    "published": PLUS,
    "default": {
        "discriminators": ("knn",),
        "thresholds": (0.0,),
        "soft_weight": False,
        "min_images": "auto",
        "neighborhood": 1,
        "model.score_smoothing": 1.0,
    },
}
CLEAN = "PatchCore, trained clean"
OVERLAP, NO_OVERLAP, AS_IT_IS = "overlap", "no overlap", "as it is"
MOST = "most"
SOLAR = "solar"
ASKED = (1, 5, 10)  # false alarms in %


class Reference:
    """PatchCore, trained without the noise of a set, and its predictions for the test images."""

    def __init__(self, model: SoftPatchModel, features: Features, coreset: float, seed: int) -> None:
        clean = ~torch.from_numpy(features.injected | features.doubtful)
        fit(model, features.train[clean], SETTINGS["patchcore"], coreset, seed)
        self.numbers = {path: number for number, path in enumerate(features.paths)}
        self.scores, self.maps = score(model, features)

    def figures(self, features: Features) -> Figures:
        """Return the AUROCs on the test images of a run, which may be some of them."""
        chosen = [self.numbers[path] for path in features.paths]
        return aurocs(features, self.scores[chosen], self.maps[chosen])


def fit(model: SoftPatchModel, train: torch.Tensor, setting: Mapping[str, Any], coreset: float, seed: int) -> float:
    """Fit a setting; return the processor time in seconds."""
    options = dict(setting)
    model.score_smoothing = options.pop("model.score_smoothing", 0.0)
    model.memory_bank_builder = DenoisingMemoryBank(**options, coreset_sampling_ratio=coreset, seed=seed)
    model.feature_store.append(train)
    return measure_processor(model.fit)[1]


@torch.no_grad()
def score(model: SoftPatchModel, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores and the maps of the test images."""
    parts = [model.score(part, features.masks.shape[-2:]) for part in features.test.split(8)]
    return torch.cat([part.pred_score for part in parts]), torch.cat([part.anomaly_map for part in parts])


def aurocs(features: Features, scores: torch.Tensor, maps: torch.Tensor) -> Figures:
    """Return the image AUROC and, where there are masks, the pixel AUROC, in %."""
    figures = {"image": 100 * float(roc_auc_score(features.labels, scores))}
    if features.masks.any():
        figures["pixel"] = 100 * float(roc_auc_score(features.masks.flatten(), maps.flatten()))
    return figures


def ranking(features: Features, model: SoftPatchModel) -> Figures:
    """Return how well a fit's scores of the training images find the noise: AUROC in %."""
    images = len(features.injected)
    scored = {}
    if model.denoising is not None and model.denoising.scores is not None:
        scored["ranking"] = image_scores(model.denoising.scores.fused)
    if model.out_of_bag is not None:
        scored["ranking out of bag"] = model.out_of_bag.image_scores
    figures = {}
    for name, scores in scored.items():
        # If there are many images, only evenly spaced ones have out-of-bag scores
        truth = features.injected[torch.linspace(0, images - 1, len(scores)).round().long().numpy()]
        if 0 < truth.sum() < len(truth):
            figures[name] = 100 * float(roc_auc_score(truth, scores))
    return figures


def threshold_figures(features: Features, scores: torch.Tensor, model: SoftPatchModel) -> Figures:
    """Return false alarms and defects found at thresholds without and with labels, in %."""
    defective, variant = features.labels.bool(), torch.tensor(["variant" in Path(path).name for path in features.paths])
    good = scores[~defective & ~variant]
    figures = {}
    for percent in ASKED:
        labeled = good.quantile(1 - percent / 100)
        figures[f"labeled {percent}"] = 100 * float((scores[defective] > labeled).float().mean())
        if model.out_of_bag is not None:
            threshold = false_alarm_threshold(model.out_of_bag.image_scores, percent / 100)
            figures[f"had {percent}"] = 100 * float((scores[~defective] > threshold).float().mean())
            figures[f"found {percent}"] = 100 * float((scores[defective] > threshold).float().mean())
    if variant.any():
        figures["variant"] = 100 * float((scores[variant] > good.quantile(0.95)).float().mean())
    return figures


def evaluate(model: SoftPatchModel, features: Features, name: str, coreset: float, seed: int) -> Figures:
    """Fit one setting and return its numbers, see the description above.

    Args:
        model: Model to fit.
        features: Features to fit it to.
        name: Name of the setting.
        coreset: Size of the banks as a share of the patches.
        seed: Seed of the fit.
    """
    seconds = fit(model, features.train, SETTINGS[name], coreset, seed)
    scores, maps = score(model, features)
    figures = aurocs(features, scores, maps) | threshold_figures(features, scores, model) | ranking(features, model)
    figures["fit"] = seconds
    denoising = model.denoising
    if denoising is not None:
        figures |= {f"removed{number}": 100 * share for number, share in enumerate(denoising.shares)}
        noisy = torch.from_numpy(features.noisy)
        if denoising.scores is not None and noisy.any():
            figures["patch"] = 100 * float(roc_auc_score(noisy.flatten(), denoising.scores.fused.flatten()))
            for number, kept in enumerate(denoising.kept):
                figures[f"left{number}"] = 100 * float(kept[noisy].float().mean())
    return figures


def write_solar(folder: Path, elpv: Path, seed: int) -> None:
    """Lay out the polycrystalline cells of the package elpv-dataset as MVTec AD lays out a category, without masks.

    Half of them, chosen by the seed, are training images, including defective ones. Of the others, those with a defect
    probability of 0 are the good test images, and those with 2/3 or more the defective ones.

    Args:
        folder: Folder to make.
        elpv: Folder that the package was unpacked into.
        seed: Seed of the halves.
    """
    labels = next(elpv.rglob("labels.csv"))
    cells = [line.split() for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()]
    cells = [(labels.parent / path, float(probability)) for path, probability, kind in cells if kind == "poly"]
    order = np.random.default_rng(seed).permutation(len(cells))
    for rank, (path, probability) in enumerate(cells[number] for number in order):
        kind = "defect" if probability > 0.6 else "doubtful" if probability > 0 else "good"
        if rank < len(cells) // 2:
            target = folder / "train" / "good" / f"{kind}_{path.name}"
        elif kind == "doubtful":
            continue
        else:
            target = folder / "test" / kind / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


class NoisySet:
    """A set with one seed: its images, the measurements on it, and its features.

    Args:
        name: Name of the set.
        seed: Seed of its noise, of the fits and, if the set is drawn, of its images.
        options: Options of the command line.
        folder: Empty folder for sets that have to be made.
        model: Extracts the features.
    """

    def __init__(self, name: str, seed: int, options: argparse.Namespace, folder: Path, model: SoftPatchModel) -> None:
        self.name, self.seed, self.model, self.options = name, seed, model, options
        self.place = argparse.Namespace(root=options.root, category=name, image_size=options.image_size)
        self.injected = True
        if name == SOLAR or name in DRAWN:
            self.place.root, self.place.category = folder / f"seed{seed}", name.replace(" ", "_")
            self.place.root.mkdir(exist_ok=True)
            category = self.place.root / self.place.category
            if name == SOLAR:
                write_solar(category, options.elpv, seed)
                self.injected = False
            else:
                DRAWN[name][0](category, seed)
                self.injected = DRAWN[name][1]

    def features(self, ratio: float = 0.0, protocol: str = OVERLAP) -> Features:
        """Extract the features of a noise ratio."""
        overlap = protocol == OVERLAP
        return extract(self.model, ratio, self.seed, overlap=overlap, rotated=False, arguments=self.place)

    @cached_property
    def reference(self) -> Reference:
        """PatchCore, trained clean."""
        return Reference(self.model, self.features(), self.options.coreset, self.seed)

    def columns(self) -> Iterator[tuple[str, str, float]]:
        """Yield protocol, column and noise ratio of all measurements."""
        if not self.injected:
            yield AS_IT_IS, AS_IT_IS, 0.0
            return
        category = Path(self.place.root, self.place.category)
        normal = sum(1 for _ in category.glob("train/good/*"))
        most = sum(file.parent.name != "good" for file in category.glob("test/*/*")) // 2
        ratios = self.options.ratios
        possible = [ratio for ratio in ratios if int(ratio * normal) <= most]
        for ratio in ratios:
            yield OVERLAP, heading(ratio), ratio
        for ratio in possible:
            yield NO_OVERLAP, heading(ratio), ratio
        # Next to one that was asked for, it would say nothing new
        if len(possible) < len(ratios) and most > 1.1 * int(max(possible, default=0) * normal):
            yield NO_OVERLAP, MOST, largest_ratio(most, normal)


def heading(ratio: float) -> str:
    """Return a noise ratio with its share of all training images."""
    return f"{ratio:.0%}" + f" ({ratio / (1 + ratio):.1%} of all)" * (ratio > 0)


def measure_set(noisy_set: NoisySet, rows: Rows, headings: Sequence[str], settings: Sequence[str]) -> Iterator[None]:
    """Measure the missing runs of the rows; yield after every run."""
    seed, options = noisy_set.seed, noisy_set.options

    def runs(protocol: str, column: str, setting: str) -> list[Figures]:
        row = rows.setdefault(f"{noisy_set.name}, {protocol}: {setting}", [[] for _ in headings])
        return row[headings.index(column)]

    for protocol, column, ratio in noisy_set.columns():
        asked = [CLEAN, *settings]
        known = {name: [run for run in runs(protocol, column, name) if run["seed"] == seed] for name in asked}
        if ratio == 0 and protocol == NO_OVERLAP:  # the same training and test set
            for name in asked:
                twins = [run for run in runs(OVERLAP, column, name) if run["seed"] == seed]
                runs(protocol, column, name).extend([] if known[name] else twins)
            yield
            continue
        if all(known.values()):
            continue
        clean = noisy_set.reference
        features = noisy_set.features(ratio, protocol)
        figures_of_clean = clean.figures(features)
        share = {"share": 100 * float(features.injected.mean())}
        if features.doubtful.any():
            share["doubtful"] = 100 * float((features.injected | features.doubtful).mean())
        for name in (name for name in asked if not known[name]):
            figures = {"seed": float(seed)} | share
            if name == CLEAN:
                figures |= figures_of_clean
            else:
                figures |= evaluate(noisy_set.model, features, name, options.coreset, seed)
                figures |= {f"{key} distance": figures[key] - value for key, value in figures_of_clean.items()}
            runs(protocol, column, name).append(figures)
            shown = ", ".join(f"{key} {value:.1f}" for key, value in figures.items())
            print(f"# {noisy_set.name}, {protocol}, {column}, {name}: {shown}", flush=True)
            yield


def rows_of(rows: Rows, name: str) -> Rows:
    """Return the rows of a set, without its name."""
    return {row.removeprefix(f"{name}, "): runs for row, runs in rows.items() if row.startswith(f"{name}, ")}


def print_tables(rows: Rows, headings: Sequence[str], names: Sequence[str]) -> None:
    """Print three tables for each set. Their headings have the measured share of noise."""
    tables = {
        "image / pixel AUROC [%]": ("image", "pixel"),
        "distance to PatchCore, trained clean [points]": ("image distance", "pixel distance"),
        "5 % of false alarms asked for: had / defects found / found with labels [%]": ("had 5", "found 5", "labeled 5"),
    }
    for name in names:
        chosen = rows_of(rows, name)
        exact = []
        for number, text in enumerate(headings):
            shares = [run["share"] for columns in chosen.values() for run in columns[number]]
            true = f" ({fmean(shares):.1f}% of all)" if shares and any(shares) else ""
            exact.append(text.partition(" (")[0] + true)
        measured = {key for row in chosen.values() for runs in row for run in runs for key in run}
        for title, keys in tables.items():
            print()
            print_table([f"{name}: {title}", *exact], chosen, [key for key in keys if key in measured])


def plot(path: Path, rows: Rows, names: Sequence[str], settings: Sequence[str]) -> None:
    """Draw a panel for each set and protocol: image AUROC (solid) and pixel AUROC (dashed) by share of noise."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, grid = plt.subplots(
        2,
        len(names),
        figsize=(2.6 * len(names) + 1, 5.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, name in zip(grid.T, names, strict=True):
        chosen = rows_of(rows, name)
        as_it_is = any(row.startswith(AS_IT_IS) for row in chosen)
        for axis, protocol in zip(axes, (AS_IT_IS, "") if as_it_is else (OVERLAP, NO_OVERLAP), strict=True):
            axis.set_axis_off() if not protocol else axis.set_title(f"{name}, {protocol}", fontsize=9)
            for number, setting in enumerate([CLEAN, *settings]):
                color, marker = ("black", "") if setting == CLEAN else (f"C{number - 1}", "o")
                for key, style in (("image", "-"), ("pixel", "--")):
                    columns = [runs for runs in chosen.get(f"{protocol}: {setting}", []) if runs and key in runs[0]]
                    points = sorted((fmean(run["share"] for run in runs), fmean(run[key] for run in runs))
                                    for runs in columns)  # fmt: skip
                    label = setting if key == "image" and axis is grid[0, 0] else None
                    if points and setting == CLEAN and len(points) == 1:
                        axis.axhline(points[0][1], color=color, linestyle=style, linewidth=1, label=label)
                    else:
                        axis.plot(*zip(*points, strict=True) if points else ([], []), style, color=color,
                                  marker=marker, markersize=3, linewidth=1, label=label)  # fmt: skip
            axis.grid(alpha=0.3)
        axes[0 if as_it_is else 1].set_xlabel("noise among the training images [%]", fontsize=8)
        axes[0].tick_params(labelbottom=as_it_is)
    for axis in grid[:, 0]:
        axis.set_ylabel("AUROC [%]: image solid, pixel dashed", fontsize=8)
    figure.legend(loc="outside lower center", ncols=len(settings) + 1)
    figure.savefig(path, dpi=150)


def read_rows(path: Path | None, title: str, headings: Sequence[str]) -> tuple[Rows, str]:
    """Read the file of an earlier run of the same measurement.

    Returns:
        The rows, none if there is no file, and the commits that they were measured with.

    Raises:
        SystemExit: If the file is from another measurement.
    """
    if path is None or not path.exists():
        return {}, COMMIT
    record = json.loads(path.read_text(encoding="utf-8"))
    if (record.get("title"), record.get("headings")) != (title, list(headings)):
        msg = f"{path} has figures of other options ({record.get('title')}): give the same ones, or another file."
        raise SystemExit(msg)
    commits = [*(commit for commit in record["commit"].split(", ") if commit != COMMIT), COMMIT]
    return record["rows"], ", ".join(commits)


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Check the options before anything is measured."""
    for name in options.sets:
        if name not in {SOLAR, *DRAWN} and not (Path(options.root) / name / "train" / "good").is_dir():
            parser.error(f"there is no set {name!r} in {options.root} (--root), and the others are: {SOLAR}, "
                         + ", ".join(DRAWN))  # fmt: skip
    if SOLAR in options.sets and (options.elpv is None or not any(options.elpv.rglob("labels.csv"))):
        parser.error(f"the set {SOLAR!r} needs --elpv FOLDER, in which the package elpv-dataset was unpacked: "
                     "pip download --no-deps elpv-dataset, then unzip the wheel.")  # fmt: skip


def main() -> None:
    """Measure all sets, and print the tables."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.1, 0.2, 0.4], sets=["kolektor"])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--cache", type=Path, help="folder that keeps the features, so that later runs are faster")
    parser.add_argument("--plot", type=new_file, help="PNG file to draw the curves to")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.image_size, options.seeds = 64, options.seeds[:1]
    check(options, parser)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    network = Path(options.backbone.removeprefix("local-dir:")).name
    title = (
        f"Image / pixel AUROC in % against the noise ratio: {network}, {' + '.join(options.layers)}, "
        f"{options.image_size} px, coreset {options.coreset:.3g}"
    )
    headings = [*map(heading, options.ratios), MOST, AS_IT_IS]
    rows, commits = read_rows(options.save, title, ["", *headings])

    model = SoftPatchModel(options.layers, options.backbone).eval()
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary, "features")
        model.feature_cache = FeatureCache(model.feature_extractor, cache)
        for name in options.sets:
            for seed in options.seeds:
                noisy_set = NoisySet(name, seed, options, Path(temporary), model)
                for _ in measure_set(noisy_set, rows, headings, options.settings):
                    save_results(options.save, title, ["", *headings], rows, ["image", "pixel"], commit=commits)
    print_tables(rows, headings, options.sets)
    if options.plot:
        plot(options.plot, rows, options.sets, options.settings)


if __name__ == "__main__":
    main()
