# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""How far the memory banks hold: AUROC from clean training images to many noisy ones, with stages switched on and off.

Every setting is fitted to the same features, under the protocol "overlap". The first row is what all others are held
against: PatchCore trained on the clean images, which is also what an oracle would reach that leaves all injected images
out. "Oracle, patches" is one that removes exactly the patches under the masks.

Printed for each setting and noise ratio: image AUROC / pixel AUROC, means over seeds with their standard deviations;
after it how well the scores find the noise (patch AUROC, image AUROC of the mean of the highest 3 % of an image's
patches) and how much of it stays in the banks (share of the patches under the masks).

Example::

    python benchmarks/robustness.py --seeds 0 1 2 --ratios 0 0.1 0.2 0.4
    python benchmarks/robustness.py --ratios 0 0.1 0.2 0.3 0.4 0.5 --plot robustness.png  # with curves
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ablation import PATCHCORE, PLUS, Features, extract
from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore
from anomalib_softpatch.components.patch_scores import PatchScores
from anomalib_softpatch.models import SoftPatchModel
from anomalib_softpatch.report.image_scores import image_scores
from common import accuracy_parser, describe_machine, measure_processor, new_file, print_table, save_results

AUTO = ("auto", "auto")
DEFAULT: dict[str, Any] = {
    "discriminators": ("simplified_lof",),
    "thresholds": AUTO,
    "soft_weight": False,
    "prototypes": True,
    "model.score_smoothing": 1.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": PATCHCORE,
    "softpatch": {},
    "published": PLUS,
    "default": DEFAULT,
    "patchcore-smoothed": PATCHCORE | {"model.score_smoothing": 1.0},
    "default-published-shares": DEFAULT | {"thresholds": (0.15, 0.5)},
    "default-no-prototypes": DEFAULT | {"prototypes": False},
    "default-no-smoothing": DEFAULT | {"model.score_smoothing": 0.0},
    "default-weighted": DEFAULT | {"soft_weight": True},
    "default-ensemble": DEFAULT | {"discriminators": ("ensemble",)},
    "default-lof30": DEFAULT | {"discriminators": ("lof",), "lof_k": 30},
    "default-lof-gaussian": DEFAULT | {"discriminators": ("lof", "gaussian")},
    "oracle": PATCHCORE,
}
CLEAN = "PatchCore, trained clean"
CURVES = {  # settings that are drawn, and their names in the plot
    CLEAN: CLEAN,
    "oracle": "PatchCore without the patches under the masks",
    "default": "SoftPatch+, default",
    "published": "SoftPatch+, as published",
    "softpatch": "SoftPatch",
    "patchcore": "PatchCore",
}


class SharedScores(DenoisingMemoryBank):
    """Scores patches once for all settings that score them alike, and remembers how long that took."""

    def __init__(self, known: dict[Any, tuple[PatchScores, float]], **options: Any) -> None:
        super().__init__(**options)
        self.known = known
        self.saved = 0.0

    def _score(self, projected: torch.Tensor) -> PatchScores:
        key = (self.discriminators, self.lof_k, self.neighborhood, self.max_references)
        if key in self.known:
            scores, self.saved = self.known[key]
            return scores
        self.known[key] = measure_processor(lambda: super(SharedScores, self)._score(projected))
        return self.known[key][0]


class Oracle(DenoisingMemoryBank):
    """Knows the noise: removes exactly the patches under the masks."""

    def __init__(self, noisy: np.ndarray, **options: Any) -> None:
        super().__init__(**options)
        self.noisy = torch.from_numpy(noisy)

    def _keep(self, scores: PatchScores | None, threshold: float, store: FeatureStore) -> torch.Tensor:
        del scores, threshold, store
        return ~self.noisy


def evaluate(
    model: SoftPatchModel,
    features: Features,
    name: str,
    coreset: float,
    seed: int,
    known: dict[Any, tuple[PatchScores, float]] | None = None,
) -> dict[str, float]:
    """Fit one setting and return its figures.

    Args:
        model: Model to fit.
        features: What to.
        name: Of the setting.
        coreset: Size of the banks as a share of the patches.
        seed: Seed of the fit.
        known: Scores of these features that other settings needed, see :class:`SharedScores`.

    Returns:
        Figures in %, and the processor time of the fit in seconds, without the features.
    """
    options = dict(SETTINGS[name])
    model.score_smoothing = options.pop("model.score_smoothing", 0.0)
    options |= {"coreset_sampling_ratio": coreset, "seed": seed}
    shared = SharedScores({} if known is None else known, **options)
    model.memory_bank_builder = Oracle(features.noisy, **options) if name == "oracle" else shared
    model.feature_store.append(features.train)
    _, fit_time = measure_processor(model.fit)
    size = features.masks.shape[-2:]
    with torch.no_grad():
        parts = [model.score(part, size) for part in features.test.split(8)]
    scores = torch.cat([part.pred_score for part in parts])
    figures = {
        "image": 100 * roc_auc_score(features.labels, scores),
        "pixel": 100
        * roc_auc_score(features.masks.flatten(), torch.cat([part.anomaly_map for part in parts]).flatten()),
        "fit": fit_time + shared.saved,
    }
    variant = torch.tensor(["variant" in Path(path).name for path in features.paths])
    if variant.any():  # of the synthetic sets
        threshold = scores[~variant & ~features.labels.bool()].quantile(0.95)
        figures["false alarms"] = 100 * float((scores[variant] > threshold).float().mean())
    denoising = model.denoising
    figures |= {f"removed{number}": 100 * share for number, share in enumerate(denoising.shares)}
    if denoising.scores is not None and features.noisy.any():
        fused = denoising.scores.fused
        figures["patch"] = 100 * roc_auc_score(features.noisy.flatten(), fused.flatten())
        figures["ranking"] = 100 * roc_auc_score(features.injected, image_scores(fused))
        noisy = torch.from_numpy(features.noisy)
        for number, kept in enumerate(denoising.kept):
            figures[f"left{number}"] = 100 * float(kept[noisy].float().mean())
    return figures


def plot(path: Path, results: dict[str, dict[float, list[dict[str, float]]]]) -> None:
    """Draw the curves of some settings, with one standard deviation to both sides."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for axis, key in zip(axes, ("image", "pixel"), strict=True):
        for name in (name for name in CURVES if name in results):
            ratios = [100 * ratio for ratio, runs in results[name].items() if runs]
            values = np.array([[run[key] for run in runs] for runs in results[name].values() if runs])
            means, deviations = values.mean(axis=1), values.std(axis=1)
            line = axis.plot(ratios, means, "--" if name == CLEAN else "o-", label=CURVES[name])[0]
            axis.fill_between(ratios, means - deviations, means + deviations, color=line.get_color(), alpha=0.2)
        axis.set(xlabel="Noise ratio [%]", ylabel=f"{key.capitalize()} AUROC [%]", ylim=(0, 100))
        axis.tick_params(labelleft=True)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the tables."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.1, 0.2, 0.4])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rotated", action="store_true", help="turn every image by a random multiple of 90 degrees")
    parser.add_argument("--plot", type=new_file, help="PNG file to draw the curves to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(), flush=True)

    model = SoftPatchModel(arguments.layers, arguments.backbone).eval()
    results: dict[str, dict[float, list[dict[str, float]]]] = {CLEAN: {}}
    headings = [f"{ratio:.0%}" for ratio in arguments.ratios]

    def save() -> None:
        rows = {name: [runs.get(ratio, []) for ratio in arguments.ratios] for name, runs in results.items()}
        title = f"Image / pixel AUROC in % against the noise ratio, {arguments.category}, protocol overlap"
        save_results(arguments.save, title, ["image / pixel AUROC", *headings], rows, ["image", "pixel"])

    for ratio in arguments.ratios:
        for seed in arguments.seeds:
            features = extract(model, ratio, seed, overlap=True, rotated=arguments.rotated, arguments=arguments)
            known: dict[Any, tuple[PatchScores, float]] = {}
            for name in arguments.settings:
                if name == "oracle" and not features.noisy.any():
                    continue
                figures = evaluate(model, features, name, arguments.coreset, seed, known)
                results.setdefault(name, {}).setdefault(ratio, []).append(figures)
                print(f"# {ratio:.0%} seed {seed} {name}: {figures}", flush=True)
                save()
    clean = results.get("patchcore", {}).get(0)
    if clean:
        results[CLEAN] = dict.fromkeys(arguments.ratios, clean)
    save()
    if arguments.plot:
        plot(arguments.plot, results)
    tables = {
        "image / pixel AUROC": ["image", "pixel"],
        "patch AUROC / image ranking / left": ["patch", "ranking", "left0"],
    }
    for title, keys in tables.items():
        rows = {}
        for name, columns in results.items():
            runs = [[run for run in columns.get(ratio, []) if keys[0] in run] for ratio in arguments.ratios]
            if any(runs):
                rows[name] = runs
        print()
        print_table([title, *headings], rows, keys)


if __name__ == "__main__":
    main()
