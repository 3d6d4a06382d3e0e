# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""Compare settings of the models on the same noisy features, and print a table of AUROCs.

The features of each noise ratio and seed are extracted once, and every setting is fitted to them, so that a comparison
takes minutes. The table has the image AUROC, the pixel AUROC and the patch AUROC (how well the fused scores find the
injected defects), as means over seeds with their standard deviation.

Example::

    python benchmarks/ablation.py --table weights
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, Folder, MVTecAD
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2.functional import rotate

from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.data import NoisyDataModule
from anomalib_softpatch.models import SoftPatch, SoftPatchModel
from common import accuracy_parser, describe_machine, print_table, save_results

SOFT_PATCH: dict[str, Any] = {}
PLUS: dict[str, Any] = {"discriminators": ("lof", "gaussian"), "thresholds": (0.15, 0.5)}
PATCHCORE: dict[str, Any] = {"thresholds": (0.0,), "soft_weight": False}

# Settings of each table: arguments of DenoisingMemoryBank, and those of SoftPatchModel after "model."
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "models": {"PatchCore": PATCHCORE, "SoftPatch": SOFT_PATCH, "SoftPatch+": PLUS},
    "weights": {
        "PatchCore": PATCHCORE,
        "SoftPatch": SOFT_PATCH,
        "SoftPatch, no weight": {"soft_weight": False},
        "SoftPatch+, no weight": PLUS | {"soft_weight": False},
        "SoftPatch+, 1 + r": PLUS | {"soft_weight": "rank"},
        "SoftPatch+, local outlier factor": PLUS | {"soft_weight": "lof"},
    },
    "thresholds": {
        "SoftPatch, 0.5": {"thresholds": (0.5,)},
        "SoftPatch+, classification 0.15": PLUS,
        "SoftPatch+, classification 0.3": PLUS | {"thresholds": (0.3, 0.5)},
        "SoftPatch+, classification 0.5": PLUS | {"thresholds": (0.5, 0.5)},
    },
    "map": {
        "SoftPatch": SOFT_PATCH,
        "SoftPatch, nearest-neighbor map": {"model.upsampling": "nearest"},
    },
    "neighborhood": {
        f"{name}, {label}": setting | {"neighborhood": neighborhood}
        for name, setting in (("SoftPatch", SOFT_PATCH), ("SoftPatch+", PLUS))
        for label, neighborhood in (("same position", 0), ("radius 1", 1), ("image", "image"))
    },
    "discriminators": {
        "SoftPatch, lof": SOFT_PATCH,
        "SoftPatch, nearest": {"discriminators": ("nearest",)},
        "SoftPatch, gaussian": {"discriminators": ("gaussian",)},
        "SoftPatch+, lof + gaussian": PLUS,
    },
}


@dataclass
class Features:
    """Features of one training and test set."""

    train: torch.Tensor
    noisy: np.ndarray  # true mask of every training patch
    test: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    injected: np.ndarray  # which training images were injected, or are known to have a defect
    paths: list[str]  # of the test images
    doubtful: np.ndarray  # which training images may have a defect


def set_of(root: Path, category: str) -> AnomalibDataModule:
    """Return a set in MVTec AD's layout, with or without masks."""
    folder = root / category
    has_masks = (folder / "ground_truth").is_dir()
    if has_masks and any((folder / "train" / "good").glob("*.png")):
        return MVTecAD(root=root, category=category, num_workers=0, seed=0)
    # MVTecAD reads PNG files only
    folders = {"normal_dir": "train/good", "abnormal_dir": "test/defect", "normal_test_dir": "test/good"}
    folders |= {"mask_dir": "ground_truth/defect"} if has_masks else {}
    # By default, half of the test set would become a validation set
    return Folder(category, root=folder, **folders, num_workers=0, val_split_mode="same_as_test", seed=0)


def is_bad(name: str) -> bool:
    """Return whether a training image surely has a defect, by its name, in a set with its own noise."""
    return name.startswith("defect_")


def is_doubtful(name: str) -> bool:
    """Return whether a training image may have a defect, by its name, in a set with its own noise."""
    return name.startswith("doubtful_")


def extract(
    model: SoftPatchModel, ratio: float, seed: int, overlap: bool, rotated: bool, arguments: argparse.Namespace
) -> Features:
    """Extract the features of one noisy set; ``rotated`` rotates every image by a seeded multiple of 90 degrees.

    Masks are optional. In a set with its own noise, training images with a defect are named ``defect_...``, and those
    that may have one ``doubtful_...``.
    """
    wrapped = set_of(Path(arguments.root), arguments.category)
    datamodule = NoisyDataModule(wrapped, noise_ratio=ratio, overlap=overlap, seed=seed)
    datamodule.prepare_data()
    datamodule.setup()
    transform = SoftPatch.configure_pre_processor((arguments.image_size, arguments.image_size)).transform
    turns = torch.Generator().manual_seed(seed)

    def batches(loader: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]]:
        for batch in loader:
            images, masks = transform(batch.image, batch.gt_mask)
            masks = masks if masks is not None else torch.zeros_like(images[:, 0])
            if rotated:
                angles = (90 * torch.randint(4, (len(images),), generator=turns)).tolist()
                images = torch.stack([rotate(image, angle) for image, angle in zip(images, angles, strict=True)])
                masks = torch.stack([rotate(m[None], angle)[0] for m, angle in zip(masks, angles, strict=True)])
            yield model.extract(images), batch.gt_label, masks, batch.image_path

    torch.manual_seed(seed)
    train, noisy, injected, names = [], [], [], []
    for features, _, _, paths in batches(datamodule.train_dataloader()):
        injected.extend(datamodule.truth.loc[paths, "true_label_index"])
        names.extend(Path(path).name for path in paths)
        train.append(features)
        # The injected images are known by their files on disk
        noisy.extend(true_patches(datamodule, path, tuple(features.shape[1:3])) & (not rotated) for path in paths)
    test = list(batches(datamodule.test_dataloader()))
    return Features(
        torch.cat(train),
        np.stack(noisy),
        torch.cat([features for features, *_ in test]),
        torch.cat([labels for _, labels, *_ in test]),
        torch.cat([masks for _, _, masks, _ in test]).bool(),
        np.array(injected, dtype=bool) | [is_bad(name) for name in names],
        [path for *_, paths in test for path in paths],
        np.array([is_doubtful(name) for name in names]),
    )


def true_patches(datamodule: NoisyDataModule, path: str, grid_size: tuple[int, int]) -> np.ndarray:
    """Return which patches of a training image are defective in at least half of their area."""
    mask = datamodule.true_mask(path)
    if mask is None:
        return np.zeros(grid_size, dtype=bool)
    covered = torch.nn.functional.interpolate(mask.float().reshape(1, 1, *mask.shape[-2:]), size=grid_size, mode="area")
    return (covered[0, 0] >= 0.5).numpy()


def evaluate(
    model: SoftPatchModel, features: Features, setting: dict[str, Any], coreset: float, seed: int
) -> dict[str, float]:
    """Fit one setting and return its numbers."""
    setting = dict(setting)
    model.upsampling = setting.pop("model.upsampling", "bilinear")
    builder = DenoisingMemoryBank(**setting, coreset_sampling_ratio=coreset, seed=seed)
    started = time.perf_counter()
    previous = vars(model.memory_bank_builder) | {"soft_weight": builder.soft_weight}
    if model.denoising is not None and model.denoising.scores is not None and previous == vars(builder):
        # Only the weights differ: the coreset would be the same
        bank = model.denoising
        model.weights = builder.weigh(bank.scores, bank.indices)
    else:
        model.memory_bank_builder = builder
        model.feature_store.append(features.train)
        model.fit()
    fit_time = time.perf_counter() - started
    size = features.masks.shape[-2:]
    with torch.no_grad():
        parts = [model.score(part, size) for part in features.test.split(8)]
    image = roc_auc_score(features.labels, torch.cat([part.pred_score for part in parts]))
    pixel = roc_auc_score(features.masks.flatten(), torch.cat([part.anomaly_map for part in parts]).flatten())
    scores = model.denoising.scores
    known = scores is not None and features.noisy.any()
    patch = roc_auc_score(features.noisy.flatten(), scores.fused.flatten()) if known else float("nan")
    ranges = model.bank_ranges
    rows = sum(stop - start for start, stop in ranges)
    return {
        "image": 100 * image,
        "map": 100 * pixel,
        "patch": 100 * patch,
        "fit": fit_time,
        "stored": 100 * len(model.weights) / rows,
    }


def main() -> None:
    """Run one table."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.1, 0.4])
    parser.add_argument("--table", choices=TABLES, nargs="+", default=["models"])
    parser.add_argument("--patch-embedding", choices=["average", "unfold"], default="average")
    parser.add_argument("--no-overlap", action="store_true")
    parser.add_argument("--rotated", action="store_true", help="rotate every image by a random multiple of 90 degrees")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(), flush=True)

    model = SoftPatchModel(arguments.layers, arguments.backbone, patch_embedding=arguments.patch_embedding).eval()
    settings = {name: setting for table in arguments.table for name, setting in TABLES[table].items()}
    results: dict[tuple[str, float], list[dict[str, float]]] = {}
    for ratio in arguments.ratios:
        for seed in arguments.seeds:
            model.denoising = None
            features = extract(model, ratio, seed, not arguments.no_overlap, arguments.rotated, arguments)
            for name, setting in settings.items():
                figures = evaluate(model, features, setting, arguments.coreset, seed)
                results.setdefault((name, ratio), []).append(figures)
                print(f"# {ratio:.0%} seed {seed} {name}: {figures}", flush=True)
    headings = ["image / map AUROC", *(f"{ratio:.0%}" for ratio in arguments.ratios)]
    rows = {name: [results[name, ratio] for ratio in arguments.ratios] for name in settings}
    protocol = "no overlap" if arguments.no_overlap else "overlap"
    title = f"Image / map AUROC in % against the noise ratio, {arguments.category}, protocol {protocol}"
    save_results(arguments.save, title, headings, rows, ["image", "map"])
    print_table(headings, rows, ["image", "map"])


if __name__ == "__main__":
    main()
