# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""The cost of ``max_references``: how well noise is found, and how fast, with fewer patches to compare with.

The features are synthetic, of 7,000 images (128 dimensions, to which features are projected before they are scored),
with a known share of noise. Every position has three normal variants (80, 15 and 5 % of the images) that vary along
axes of decreasing variance, by an amount that differs between images. A defect moves a patch in its own direction,
except for one that moves the patches of 2 % of the images in the same direction. All patches of a defective image are
noise. Positions are scored independently of each other, so that a window of 4 x 4 positions inside of the defects is
enough. The time of a grid of 32 x 32 is that of the window times 64.

The tables have the AUROC of the scores of single defects / of the repeated one against the normal patches, in %, and
processor times. ``--real`` compares real features instead: KolektorSDD with MobileNetV2, patches at the same position
and of the whole image (``neighborhood``), AUROC of the patches under the masks.

Example::

    python benchmarks/references.py --threads 1
    python benchmarks/references.py --threads 1 --real
"""

import argparse
from collections.abc import Iterator
from typing import Literal

import torch
from sklearn.metrics import roc_auc_score

from ablation import extract
from anomalib_softpatch.components import DISCRIMINATORS, References
from anomalib_softpatch.models import SoftPatchModel
from common import accuracy_parser, describe_machine, measure_processor, print_table, save_results

GRID = 32  # positions of an image along a side
K = 6  # neighbors of the local outlier factor, as in the papers
VARIANTS = (0.8, 0.15, 0.05)
REPEATED = 0.02  # share of the images that show the same defect
CAPS = [500, 1000, 2000, 4096, 7000]
REAL_CAPS = [50, 100, 200, 500, 1000, 4096]


def synthetic_features(
    images: int, window: int, share: float, strength: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features of a window of the grid.

    Args:
        images: Number of images.
        window: Height and width of the window in patches.
        share: Share of the images whose patches are noise.
        strength: Median length of a defect's displacement, relative to the differences of normal patches.
        seed: Seed.

    Returns:
        Features of shape ``(images, window, window, 128)``, and for each image 0 (normal), 1 (a single defect) or
        2 (the defect that repeats).
    """
    generator = torch.Generator().manual_seed(seed)
    positions, axes, dimensions = window**2, 64, 128

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    kind = torch.zeros(images, dtype=torch.long)
    order = torch.randperm(images, generator=generator)
    kind[order[: round(share * images)]] = 1
    kind[order[: round(REPEATED * images)]] = 2
    variant = torch.multinomial(torch.tensor(VARIANTS), images, replacement=True, generator=generator)
    spectrum = torch.arange(1, axes + 1) ** -0.5
    extent = torch.exp(0.25 * normal(images))  # of an image
    moved = strength * torch.exp(0.5 * normal(images)) * (kind > 0)
    moved[kind == 2] = strength
    features = []
    for _ in range(positions):
        mixing = spectrum[:, None] * normal(axes, dimensions) / dimensions**0.5
        typical = float(spectrum.norm())  # length of such a combination of the axes
        centers = typical * normal(len(VARIANTS), dimensions) / dimensions**0.5
        directions = normal(images, dimensions) / dimensions**0.5
        directions[kind == 2] = normal(dimensions) / dimensions**0.5
        patches = centers[variant] + extent[:, None] * (normal(images, axes) @ mixing)
        features.append(patches + typical * moved[:, None] * directions)
    return torch.stack(features, dim=1).view(images, window, window, dimensions), kind


def score(
    features: torch.Tensor, name: str, cap: int, neighborhood: int | Literal["image"] = 0
) -> tuple[torch.Tensor, float]:
    """Score all patches; return the scores and the processor time in seconds."""
    own = dict.fromkeys(DISCRIMINATORS[name].parameters, K)
    return measure_processor(lambda: DISCRIMINATORS[name].score(features, References(neighborhood, cap), **own))


def auroc(noise: torch.Tensor, normal: torch.Tensor) -> float:
    """Return the AUROC of the scores of noise against those of normal patches, in %."""
    labels = torch.cat((torch.ones(noise.numel()), torch.zeros(normal.numel())))
    return 100 * float(roc_auc_score(labels, torch.cat((noise.flatten(), normal.flatten()))))


def measure_synthetic(options: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield the row, the cap and the numbers of each run on synthetic features."""
    for seed in options.seeds:
        for share in options.ratios:
            features, kind = synthetic_features(options.images, options.window, share, options.strength, seed)
            for name in options.discriminators:
                for cap in options.caps:
                    scores, seconds = score(features, name, cap)
                    normal = scores[kind == 0]
                    figures = {"single": auroc(scores[kind == 1], normal), "repeated": auroc(scores[kind == 2], normal)}
                    figures["seconds"] = seconds * GRID**2 / options.window**2
                    yield f"{name}, {share:.0%} noise", cap, figures


def measure_real(options: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield the row, the cap and the numbers of each run on real features."""
    model = SoftPatchModel(options.layers, options.backbone).eval()
    for seed in options.seeds:
        for share in options.ratios:
            found = extract(model, share, seed, overlap=True, rotated=False, arguments=options)
            noisy = torch.from_numpy(found.noisy)
            for name in options.discriminators:
                for neighborhood, place in ((0, "same position"), ("image", "whole image")):
                    for cap in options.caps:
                        if not neighborhood and cap // 2 > len(found.train):  # the same as with the cap before
                            continue
                        scores, seconds = score(found.train, name, cap, neighborhood)
                        figures = {"patch": auroc(scores[noisy], scores[~noisy]), "seconds": seconds}
                        yield f"{name}, {place}, {share:.0%} noise", cap, figures


def main() -> None:
    """Score with each cap, and print the tables."""
    arguments = accuracy_parser(__doc__, ratios=[0.1, 0.4])
    arguments.add_argument("--real", action="store_true", help="real features instead of synthetic ones")
    arguments.add_argument("--caps", type=int, nargs="+", help="maximum numbers of references; all images: no cap")
    arguments.add_argument("--discriminators", nargs="+", choices=DISCRIMINATORS, default=["lof", "knn", "gaussian"])
    arguments.add_argument("--images", type=int, default=7000, help="images of the synthetic features")
    arguments.add_argument("--window", type=int, default=4, help="height and width of the window of their grid")
    arguments.add_argument(
        "--strength", type=float, default=1.0, help="strength of their defects, see synthetic_features"
    )
    arguments.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    options = arguments.parse_args()
    if options.quick:
        options.images, options.window, options.seeds, options.ratios = 200, 2, [0], options.ratios[:1]
    options.caps = options.caps or ([50, 200] if options.quick else REAL_CAPS if options.real else CAPS)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    headings = ["", *("no cap" if cap >= options.images else f"{cap:,}" for cap in options.caps)]
    if options.real:
        title = f"AUROC in % of noisy patches of {options.category}, whose references are limited to"
        keys = ["patch"]
    else:
        title = (
            f"AUROC in % of noisy patches, single / repeated in 2 % of {options.images:,} images, whose references are "
            "limited to"
        )
        keys = ["single", "repeated"]
    rows: dict[str, list[list[dict[str, float]]]] = {}
    for name, cap, figures in (measure_real if options.real else measure_synthetic)(options):
        columns = rows.setdefault(name, [[] for _ in options.caps])
        columns[options.caps.index(cap)].append(figures)
        print(f"# {name}, {cap} references: {figures}", flush=True)
        save_results(options.save, title, headings, rows, keys)
    print()
    print_table(headings, rows, keys)
    print(f"\nProcessor time in s{'' if options.real else f', scaled to a grid of {GRID} x {GRID}'}\n")
    print_table(headings, rows, ["seconds"])


if __name__ == "__main__":
    main()
