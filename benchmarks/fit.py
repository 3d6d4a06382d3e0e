# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The whole fit by stage: its time relative to the backbone's forward passes, its memory relative to the features.

The fit uses 352 Kolektor images of 256 px, wide_resnet50_2 (layer2, layer3), and a coreset of 0.1. The backbone is
untrained, since there are no weights for it. Its speed does not depend on the weights, but the features do, and with
them how much work the coreset selection can skip. ``--weights`` takes trained weights. Each model runs in its own
process.

Example::

    python benchmarks/fit.py
    python benchmarks/fit.py --models ours anomalib --anomalib-centers 500
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore, memory_bank
from anomalib_softpatch.components.patch_features import CPU_BATCH
from anomalib_softpatch.models import SoftPatchModel
from common import PeakMemory, describe_machine, kolektor_images, measure, parser

LAYERS = ["layer2", "layer3"]


@contextmanager
def timed(model: SoftPatchModel) -> Iterator[dict[str, float]]:
    """Yield a dictionary that collects the seconds of a fit's stages while a block runs."""
    stages = {
        "noise scores": (memory_bank, "score_patches"),
        "projection and coreset": (model.memory_bank_builder, "_select"),
        "out-of-bag scores": (model, "_score_out_of_bag"),
    }
    seconds: dict[str, float] = {}

    def wrap(stage: str, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            result, seconds[stage] = measure(lambda: function(*arguments, **options))
            return result

        return call

    with ExitStack() as stack:
        for stage, (owner, name) in stages.items():
            stack.enter_context(patch.object(owner, name, wrap(stage, getattr(owner, name))))
        yield seconds


def fit_ours(
    model: SoftPatchModel, images: torch.Tensor, batch: int, map_size: tuple[int, int] | None = None
) -> dict[str, float]:
    """Fit SoftPatch's or SoftPatch+'s model in training mode; return seconds by stage."""
    _, forward = measure(lambda: [model(part).shape for part in images.split(batch)])
    with timed(model) as stages:
        _, rest = measure(lambda: model.fit(map_size))
    return {"features": forward, **stages, "rest": rest - sum(stages.values())}


@torch.no_grad()
def fit_anomalib(
    model: PatchcoreModel, images: torch.Tensor, batch: int, ratio: float, centers: int | None = None
) -> tuple[dict[str, float], torch.Tensor]:
    """Fit Anomalib's Patchcore in training mode, with the steps of its ``subsample_embedding``.

    Args:
        model: The model.
        images: Shape ``(n, 3, height, width)``.
        batch: Images in a forward pass.
        ratio: The model's ``coreset_sampling_ratio``.
        centers: Choose only this many centers, and extrapolate the time.

    Returns:
        Seconds by stage, and the features of all patches, shape ``(patches, channels)``.
    """
    _, forward = measure(lambda: [model(part).shape for part in images.split(batch)])

    def stack() -> KCenterGreedy:
        model.memory_bank = torch.vstack(model.embedding_store)
        model.embedding_store.clear()
        return KCenterGreedy(model.memory_bank, ratio)

    sampler, rest = measure(stack)
    wanted = sampler.coreset_size
    sampler.coreset_size = min(wanted, centers or wanted)
    chosen, selecting = measure(sampler.select_coreset_idxs)
    if len(chosen) < wanted:
        print(f"Anomalib's coreset: {selecting:.1f} s for {len(chosen)} centers, extrapolated to {wanted}", flush=True)
    model.memory_bank = sampler.embedding[chosen]
    stages = {"features": forward, "projection and coreset": selecting * wanted / len(chosen), "rest": rest}
    return stages, sampler.embedding


def warm_up(backbone: torch.nn.Module, images: torch.Tensor) -> None:
    """Let the libraries allocate the memory that they keep."""
    for _ in range(2):
        backbone(images[:2])


@torch.no_grad()
def run(name: str, options: argparse.Namespace) -> None:
    """Fit one model, and print its time and memory."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = kolektor_images(options.datasets, options.images)
    network = options.weights or "wide_resnet50_2", options.weights is not None
    if name == "ours":
        builder = DenoisingMemoryBank(coreset_sampling_ratio=options.ratio)
        model = SoftPatchModel(LAYERS, *network, memory_bank_builder=builder).train()
        dtype = getattr(torch, options.dtype) if options.dtype else None
        model.feature_store = FeatureStore(dtype, options.memory_budget and options.memory_budget * 2**30)
        backbone = model.feature_extractor.backbone
    else:
        model = PatchcoreModel(LAYERS, *network).train()
        backbone = model.feature_extractor
    model.feature_extractor.eval()
    warm_up(backbone, images)
    _, alone = measure(lambda: [backbone(batch) and None for batch in images.split(options.batch)])
    stages = {"backbone alone": alone}
    if name == "ours":  # as it passes them through the backbone
        small = [batch.contiguous(memory_format=torch.channels_last) for batch in images.split(CPU_BATCH)]
        _, stages["in ours' layout"] = measure(lambda: [backbone(batch) and None for batch in small])
    with PeakMemory() as memory:
        if name == "ours":
            fitted = fit_ours(model, images, options.batch)
            patches = model.denoising.kept[0].numel()
        else:
            fitted, features = fit_anomalib(model, images, options.batch, options.ratio, options.anomalib_centers)
            patches = len(features)
    stages |= fitted | {"whole fit": sum(fitted.values())}
    channels = model.memory_bank.shape[1]
    size = patches * channels * 4
    print(
        f"\n{name}: {len(images)} images, features of {patches // len(images)} patches x {channels} channels, "
        f"{size / 2**20:.0f} MiB"
    )
    for stage, seconds in stages.items():
        print(f"  {stage:24}{seconds:9.1f} s  {seconds / alone:6.2f} x the backbone alone")
    for label, peak in (("peak memory", memory.peak), ("with mapped files", memory.peak_with_files)):
        print(f"  {label:24}{peak / 2**20:7.0f} MiB  {peak / size:6.2f} x the features in float32")


def main() -> None:
    """Fit each model in its own process."""
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=["ours", "anomalib"], default=["ours"])
    arguments.add_argument("--images", type=int, default=352)
    arguments.add_argument("--batch", type=int, default=8, help="images in a forward pass")
    arguments.add_argument("--ratio", type=float, default=0.1, help="coreset_sampling_ratio")
    arguments.add_argument("--weights", help="trained wide_resnet50_2, as local-dir:<folder>")
    arguments.add_argument("--dtype", help="data type in which ours stores the features, such as float16")
    arguments.add_argument("--memory-budget", type=float, help="GiB of features that ours keeps in memory")
    arguments.add_argument("--anomalib-centers", type=int, help="extrapolate Anomalib's coreset from this many centers")
    options = arguments.parse_args()
    if options.quick:
        options.images, options.ratio, options.anomalib_centers = 16, 0.05, 50
    torch.set_num_threads(options.threads)
    weights = "given weights" if options.weights else "untrained weights"
    print(f"{describe_machine()}\nwide_resnet50_2 with {weights}, coreset {options.ratio}", flush=True)
    for name in options.models:
        process = multiprocessing.get_context("spawn").Process(target=run, args=(name, options))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
