# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Time and memory of a fit against the number and the size of the images: table and plot. Also a fit on 7,000 images.

The fits use Kolektor images, MobileNetV2 (blocks.2, blocks.4: 128 channels), lof, and a coreset of 0.1. ``--huge`` fits
7,000 images instead, with a small coreset: random features of the shape that wide_resnet50_2 gives for 256 px (1,024
patches x 1,536 channels, float32: 41 GiB), on disk beyond the memory budget. Their values vary along 64 axes, and a
little along all.

Example::

    python benchmarks/scale.py --plot scale.png
    python benchmarks/scale.py --huge --folder /var/tmp
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore
from anomalib_softpatch.models import SoftPatchModel
from common import PeakMemory, describe_machine, in_process, kolektor_images, measure, parser

IMAGES = [44, 88, 176, 352]
SIZES = [128, 192, 256, 384, 512]


@torch.no_grad()
def fit(options: argparse.Namespace, count: int, size: int) -> dict[str, float]:
    """Fit real images; return seconds and MiB."""
    images = kolektor_images(options.datasets, count, size)
    builder = DenoisingMemoryBank(coreset_sampling_ratio=options.ratio)
    model = SoftPatchModel(["blocks.2", "blocks.4"], options.backbone, memory_bank_builder=builder).train()
    model.feature_extractor.eval()
    model.feature_extractor(images[:8])
    with PeakMemory() as memory:
        _, extraction = measure(lambda: [model(batch).shape for batch in images.split(8)])
        shape = model.feature_store.shape
        _, rest = measure(model.fit)
    patches = shape[0] * shape[1] * shape[2]
    return {
        "images": count,
        "size": size,
        "patches": patches,
        "features_s": extraction,
        "bank_s": rest,
        "features_mib": patches * shape[3] * 4 / 2**20,
        "peak_mib": memory.peak / 2**20,
    }


def fit_huge(options: argparse.Namespace) -> dict[str, Any]:
    """Fit random features that do not fit into memory."""
    patches, channels, dtype = options.grid**2, 1536, torch.float32
    own = options.huge_images * patches * channels * 4
    folder = options.folder or tempfile.gettempdir()
    spilled = max(0, own - options.memory_budget * 2**30)
    free = shutil.disk_usage(folder).free
    if free < spilled * 1.05:
        msg = f"{folder} has {free / 2**30:.0f} GiB free, {spilled * 1.05 / 2**30:.0f} GiB are needed: see --folder."
        raise SystemExit(msg)
    store = FeatureStore(dtype, options.memory_budget * 2**30, folder)
    builder = DenoisingMemoryBank(coreset_sampling_ratio=options.huge_ratio)
    builder.progress = True
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, channels, generator=generator)
    with PeakMemory(interval=0.1) as memory:
        start = time.perf_counter()
        for first in tqdm(range(0, options.huge_images, 16), desc="Making features", unit="batch"):
            count = min(16, options.huge_images - first)
            batch = torch.randn(count, options.grid, options.grid, 64, generator=generator) @ mixing
            store.append(batch.add_(torch.empty_like(batch).normal_(generator=generator)))
        making = time.perf_counter() - start
        temporary = None if store._spill is None else Path(store._spill.name)
        bank, seconds = measure(lambda: builder.fit(store))
    store.clear()
    return {
        "images": options.huge_images,
        "patches": options.huge_images * patches,
        "bank": len(bank.indices),
        "features_s": making,
        "bank_s": seconds,
        "features_mib": own / 2**20,
        "on_disk_mib": spilled / 2**20,
        "peak_mib": memory.peak / 2**20,
        "peak_with_files_mib": memory.peak_with_files / 2**20,
        "temporary_folder_removed": temporary is None or not temporary.exists(),
    }


def plot(rows: dict[str, list[dict[str, float]]], path: str) -> None:
    """Draw time and memory against the number of images and the number of pixels."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(2, len(rows), figsize=(10, 7), sharey="row", squeeze=False, layout="constrained")
    for column, (variable, results) in enumerate(rows.items()):
        values = [row[variable] for row in results]
        top, bottom = axes[:, column]
        top.plot(values, [row["features_s"] + row["bank_s"] for row in results], "o-", label="whole fit")
        top.plot(values, [row["features_s"] for row in results], "s--", label="features (backbone)")
        top.plot(values, [row["bank_s"] for row in results], "^--", label="scores, coreset and bank")
        bottom.plot(values, [row["peak_mib"] for row in results], "o-", label="peak memory")
        bottom.plot(values, [row["features_mib"] for row in results], "s--", label="features alone")
        top.set_ylabel("Time [s]")
        bottom.set_ylabel("Memory [MiB]")
        others = {key: results[0][key] for key in ("images", "size") if key != variable}
        fixed = f"{others['size']} px" if "size" in others else f"{others['images']} images"
        top.set_title(f"Fit of SoftPatch, {fixed}")
        for axis in (top, bottom):
            axis.set(xscale="log", yscale="log", xticks=values, xticklabels=values)
            axis.set_xlabel({"images": "Training images", "size": "Height and width of an image [px]"}[variable])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=150)
    print(f"\nPlot: {path}")


def main() -> None:
    """Run the fits, print the table, and draw the plot."""
    arguments = parser(__doc__)
    arguments.add_argument("--ratio", type=float, default=0.1, help="coreset_sampling_ratio")
    arguments.add_argument("--size-images", type=int, default=88, help="images where the size varies")
    arguments.add_argument("--plot", default="scale.png", help="where to draw the plot")
    arguments.add_argument("--huge", action="store_true", help="fit --huge-images random images instead")
    arguments.add_argument("--huge-images", type=int, default=7000)
    arguments.add_argument("--huge-ratio", type=float, default=0.001, help="their coreset_sampling_ratio")
    arguments.add_argument("--grid", type=int, default=32, help="height and width of their grid")
    arguments.add_argument("--memory-budget", type=float, default=1.0, help="GiB of features to hold in memory")
    arguments.add_argument("--folder", help="where their features go beyond that (default: the system's)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)
    if options.huge:
        if options.quick:
            options.huge_images, options.grid, options.memory_budget = 100, 16, 0.02
        print(json.dumps(in_process(options.threads, fit_huge, options), indent=2))
        return
    counts, sizes = ([8, 16], [64, 128]) if options.quick else (IMAGES, SIZES)
    fixed = 8 if options.quick else options.size_images
    grid = {"images": [(count, 256) for count in counts], "size": [(fixed, size) for size in sizes]}
    print(f"{'images':>8}{'size':>6}{'patches':>10}{'features s':>12}{'bank s':>9}{'features MiB':>14}{'peak MiB':>10}")
    rows: dict[str, list[dict[str, float]]] = {}
    for variable, settings in grid.items():
        rows[variable] = []
        for count, size in settings:
            row = in_process(options.threads, fit, options, count, size)
            rows[variable].append(row)
            print(
                f"{count:8}{size:6}{row['patches']:10}{row['features_s']:12.1f}{row['bank_s']:9.1f}"
                f"{row['features_mib']:14.0f}{row['peak_mib']:10.0f}",
                flush=True,
            )
    plot(rows, options.plot)


if __name__ == "__main__":
    main()
