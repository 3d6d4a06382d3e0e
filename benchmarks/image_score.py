# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Compare ways to turn the noise scores of an image's patches into one score, and print a table.

Anomalous test images are injected among the training images (overlap protocol), and every patch is scored. Each way is
measured by how well it ranks the injected images: AUROC, and precision among as many images as were injected. The table
has means over seeds with their standard deviation, in percent.

Example::

    python benchmarks/image_score.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from anomalib.data import MVTecAD
from sklearn.metrics import roc_auc_score

from anomalib_softpatch.components import PatchFeatureExtractor, keep_mask, score_patches
from anomalib_softpatch.components.patch_scores import projection_matrix
from anomalib_softpatch.data import NoisyDataModule
from anomalib_softpatch.models import SoftPatch
from common import accuracy_parser, describe_machine, print_table, save_results

REMOVED = 0.15  # SoftPatch's threshold


def top_mean(share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that takes the mean of a share of each image's patch scores, the highest ones."""

    def mean_of_highest(scores: torch.Tensor) -> torch.Tensor:
        count = max(1, round(share * scores[0].numel()))
        return scores.flatten(1).topk(count, dim=1).values.mean(dim=1)

    return mean_of_highest


def share_removed(scores: torch.Tensor) -> torch.Tensor:
    """Return the share of each image's patches that SoftPatch removes."""
    return (~keep_mask(scores, REMOVED)).flatten(1).float().mean(dim=1)


def excess(scores: torch.Tensor) -> torch.Tensor:
    """Return the sum of each image's excesses over the removal threshold."""
    cut = scores[keep_mask(scores, REMOVED)].max()
    return (scores - cut).clamp_min(0).flatten(1).sum(dim=1)


def smoothed_maximum(scores: torch.Tensor) -> torch.Tensor:
    """Return each image's highest mean of 3 x 3 patches."""
    return torch.nn.functional.avg_pool2d(scores[:, None], 3, stride=1).flatten(1).amax(dim=1)


IMAGE_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "maximum": lambda scores: scores.flatten(1).amax(dim=1),
    "maximum of 3 x 3 means": smoothed_maximum,
    "mean of the top 1 %": top_mean(0.01),
    "mean of the top 3 %": top_mean(0.03),
    "mean of the top 10 %": top_mean(0.10),
    "mean": top_mean(1.0),
    "share removed": share_removed,
    "excess over the threshold": excess,
}


def score_training_set(
    extractor: PatchFeatureExtractor, ratio: float, seed: int, arguments: argparse.Namespace
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return the patch scores of a noisy training set, and which images were injected."""
    wrapped = MVTecAD(root=arguments.root, category=arguments.category, num_workers=0, seed=0)
    datamodule = NoisyDataModule(wrapped, noise_ratio=ratio, overlap=True, seed=seed)
    datamodule.prepare_data()
    datamodule.setup()
    transform = SoftPatch.configure_pre_processor((arguments.image_size, arguments.image_size)).transform
    features, labels = [], []
    with torch.inference_mode():
        for batch in datamodule.train_dataloader():
            part = extractor(transform(batch.image))
            matrix = projection_matrix(part.shape[-1], part.device)
            features.append(part if matrix is None else part @ matrix)
            labels.extend(datamodule.truth.loc[batch.image_path, "true_label_index"])
        scores = score_patches(torch.cat(features), ("lof", "gaussian"))
        other = score_patches(torch.cat(features), ("knn",)).by_discriminator
    return other | scores.by_discriminator | {"lof + gaussian": scores.fused}, np.array(labels)


def main() -> None:
    """Print the table."""
    parser = accuracy_parser(__doc__, ratios=[0.1, 0.2, 0.4])
    parser.add_argument("--save-scores", type=Path, help="folder to save the patch scores and labels of every set in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(), flush=True)

    extractor = PatchFeatureExtractor(arguments.backbone, arguments.layers).eval()
    figures: dict[tuple[str, str, float], list[dict[str, float]]] = {}
    for ratio in arguments.ratios:
        for seed in arguments.seeds:
            scores, labels = score_training_set(extractor, ratio, seed, arguments)
            if arguments.save_scores:
                arguments.save_scores.mkdir(parents=True, exist_ok=True)
                torch.save((scores, labels.tolist()), arguments.save_scores / f"{ratio:g}-{seed}.pt")
            if not labels.any():
                continue
            for discriminator, patch_scores in scores.items():
                for name, function in IMAGE_SCORES.items():
                    image_scores = function(patch_scores).numpy()
                    found = labels[np.argsort(-image_scores, kind="stable")[: labels.sum()]].mean()
                    figures.setdefault((discriminator, name, ratio), []).append(
                        {"AUROC": 100 * roc_auc_score(labels, image_scores), "precision": 100 * found}
                    )
            print(f"# {ratio:.0%} seed {seed}: {labels.sum()} of {len(labels)} images injected", flush=True)
    ratios = [ratio for ratio in arguments.ratios if ratio]
    headings = ["patch score, image score", *(f"{ratio:.0%}" for ratio in ratios)]
    rows = {
        f"{discriminator}, {name}": [figures[discriminator, name, ratio] for ratio in ratios]
        for discriminator, name in dict.fromkeys((discriminator, name) for discriminator, name, _ in figures)
    }
    title = f"AUROC / precision in % of the ranking of the injected images, {arguments.category}, protocol overlap"
    save_results(arguments.save, title, headings, rows, ["AUROC", "precision"])
    print_table(headings, rows, ["AUROC", "precision"])


if __name__ == "__main__":
    main()
