# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The whole fit by stage: time against the backbone's forward passes alone, memory against the features' own size.

352 Kolektor images of 256 px through wide_resnet50_2 (layer2, layer3), coreset 0.1. The shared set has no weights for
it, so that it is untrained: the backbone's speed does not depend on weights, but the features do, and with them how
much the coreset selection can leave out. ``--weights`` takes trained ones. Each model runs in a process of its own.

Example::

    python benchmarks/fit.py
    python benchmarks/fit.py --models ours anomalib --anomalib-centers 500
"""

import argparse
import multiprocessing
import time
from typing import Any

import torch
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore
from anomalib_softpatch.components.patch_features import CPU_BATCH
from anomalib_softpatch.models import SoftPatchModel
from common import PeakMemory, describe_machine, kolektor_images, measure, parser

LAYERS = ["layer2", "layer3"]


class TimedMemoryBank(DenoisingMemoryBank):
    """Memory bank that keeps the time of its stages."""

    stages: dict[str, float]

    def _score(self, *arguments: Any) -> Any:
        result, self.stages["noise scores"] = measure(lambda: DenoisingMemoryBank._score(self, *arguments))
        return result

    def _select(self, *arguments: Any) -> Any:
        result, self.stages["projection and coreset"] = measure(lambda: DenoisingMemoryBank._select(self, *arguments))
        return result


@torch.no_grad()
def fit_ours(images: torch.Tensor, options: argparse.Namespace) -> tuple[dict[str, float], PeakMemory, tuple[int, int]]:
    """Fit SoftPatch; return seconds by stage, peak memory, and patches and channels of the features."""
    builder = TimedMemoryBank(coreset_sampling_ratio=options.ratio)
    builder.stages = {}
    pre_trained = options.weights is not None
    model = SoftPatchModel(
        LAYERS, options.weights or "wide_resnet50_2", pre_trained, memory_bank_builder=builder
    ).train()
    model.feature_extractor.eval()
    dtype = getattr(torch, options.dtype) if options.dtype else None
    model.feature_store = FeatureStore(dtype, options.memory_budget and options.memory_budget * 2**30)
    backbone = model.feature_extractor.backbone
    warm_up(backbone, images)
    _, alone = measure(lambda: [backbone(batch) and None for batch in images.split(options.batch)])
    # As ours passes them through it
    small = [batch.contiguous(memory_format=torch.channels_last) for batch in images.split(CPU_BATCH)]
    _, fastest = measure(lambda: [backbone(batch) and None for batch in small])
    with PeakMemory() as memory:
        _, forward = measure(lambda: [model(batch).shape for batch in images.split(options.batch)])
        _, height, width, channels = model.feature_store.shape
        _, rest = measure(model.fit)
    stages = {"backbone alone": alone, "in ours' layout": fastest, "features": forward, **builder.stages}
    stages["rest"] = rest - sum(builder.stages.values())
    stages["whole fit"] = forward + rest
    return stages, memory, (height * width, channels)


@torch.no_grad()
def fit_anomalib(
    images: torch.Tensor, options: argparse.Namespace
) -> tuple[dict[str, float], PeakMemory, tuple[int, int]]:
    """Fit Anomalib's Patchcore, with the steps of its ``subsample_embedding``."""
    model = PatchcoreModel(LAYERS, options.weights or "wide_resnet50_2", options.weights is not None).train()
    model.feature_extractor.eval()
    warm_up(model.feature_extractor, images)
    _, alone = measure(lambda: [model.feature_extractor(batch) and None for batch in images.split(options.batch)])
    with PeakMemory() as memory:
        _, forward = measure(lambda: [model(batch).shape for batch in images.split(options.batch)])
        start = time.perf_counter()
        model.memory_bank = torch.vstack(model.embedding_store)
        model.embedding_store.clear()
        shape = (len(model.memory_bank) // len(images), model.memory_bank.shape[1])
        sampler = KCenterGreedy(model.memory_bank, options.ratio)
        wanted = sampler.coreset_size
        sampler.coreset_size = min(wanted, options.anomalib_centers or wanted)
        before = time.perf_counter()
        chosen = sampler.select_coreset_idxs()
        selecting = time.perf_counter() - before
        model.memory_bank = sampler.embedding[chosen]
        rest = time.perf_counter() - start
    if len(chosen) < wanted:
        print(f"Anomalib's coreset: {selecting:.1f} s for {len(chosen)} centres, extrapolated to {wanted}")
        rest += selecting * (wanted / len(chosen) - 1)
        selecting *= wanted / len(chosen)
    stages = {"backbone alone": alone, "features": forward, "projection and coreset": selecting}
    stages |= {"rest": rest - selecting, "whole fit": forward + rest}
    return stages, memory, shape


def warm_up(backbone: torch.nn.Module, images: torch.Tensor) -> None:
    """Let the libraries allocate what they keep."""
    for _ in range(2):
        backbone(images[:2])


def run(name: str, options: argparse.Namespace) -> None:
    """Fit one model and print what it took."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = kolektor_images(options.datasets, options.images)
    stages, memory, shape = {"ours": fit_ours, "anomalib": fit_anomalib}[name](images, options)
    size = len(images) * shape[0] * shape[1] * 4
    print(
        f"\n{name}: {len(images)} images, features of {shape[0]} patches x {shape[1]} channels, {size / 2**20:.0f} MiB"
    )
    for stage, seconds in stages.items():
        print(f"  {stage:24}{seconds:9.1f} s  {seconds / stages['backbone alone']:6.2f} x the backbone alone")
    for label, peak in (("peak memory", memory.peak), ("with mapped files", memory.peak_with_files)):
        print(f"  {label:24}{peak / 2**20:7.0f} MiB  {peak / size:6.2f} x the features in float32")


def main() -> None:
    """Fit each model in a process of its own."""
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=["ours", "anomalib"], default=["ours"])
    arguments.add_argument("--images", type=int, default=352)
    arguments.add_argument("--batch", type=int, default=8, help="images in a forward pass")
    arguments.add_argument("--ratio", type=float, default=0.1, help="coreset_sampling_ratio")
    arguments.add_argument("--weights", help="trained wide_resnet50_2, as local-dir:<folder>")
    arguments.add_argument("--dtype", help="type that ours holds the features in, such as float16")
    arguments.add_argument("--memory-budget", type=float, help="GiB of features that ours holds in memory")
    arguments.add_argument("--anomalib-centers", type=int, help="extrapolate Anomalib's coreset from so many centres")
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
