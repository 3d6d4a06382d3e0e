# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Fit and inference on a GPU by stage, against Anomalib's Patchcore; and whether the CPU gives the same memory bank.

The models are those of ``comparison.py`` with the papers' settings: 209 images of 256 px, wide_resnet50_2 (untrained,
since there are no weights for it), coreset 0.1. Each runs in its own process, and the GPU's work is completed before
and after each stage. ``search`` is the inference without backbone and map. Finally, memory banks of some images are
built from the same features on the CPU and on the GPU, to compare their rows and noise scores.

Example::

    python benchmarks/gpu.py
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from anomalib.models.components import AnomalibModule
from torch import nn
from torch.nn.functional import interpolate

from common import (
    PeakMemory,
    describe_machine,
    in_process,
    kolektor_images,
    measure,
)
from comparison import BASELINE, TRAINING_BATCH, fit_by_stage, make_model, models_parser, parse, report
from exported import choose_coreset

CPU_CENTERS = 200  # centers of Anomalib's coreset that are timed on a CPU, where all of them take an hour


@contextmanager
def peak_memory(device: str) -> Iterator[Callable[[], float]]:
    """Yield a function that returns, after the block, the increase of the device's peak memory in MiB."""
    if device != "cuda":
        with PeakMemory() as memory:
            yield lambda: memory.peak / 2**20
        return
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    yield lambda: (torch.cuda.max_memory_allocated() - start) / 2**20


def extract(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return patch features of Patchcore's or our network, shape ``(images, height, width, channels)``."""
    if hasattr(network, "extract"):
        return network.extract(images)
    stages = network.feature_extractor(images)
    pooled = {layer: network.feature_pooler(features) for layer, features in stages.items()}
    return network.generate_embedding(pooled).permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def run(name: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Fit a model and score images; return the numbers of each row."""
    images = kolektor_images(options.datasets, options.images, options.size).to(options.device)
    model = make_model(name, options).to(options.device)
    network, size = model.model, (options.size, options.size)
    with peak_memory(options.device) as peak:
        stages, features = fit_by_stage(name, model, images, options)
    figures = {f"fit: {stage} [ms]": [1e3 * seconds] for stage, seconds in stages.items()}
    figures |= {"fit: whole [ms]": [1e3 * sum(stages.values())], "fit: peak memory [MiB]": [peak()]}
    if features is not None:
        network.memory_bank = choose_coreset(features, int(options.ratio * len(features)))

    network.eval()
    for batch in options.batches:
        part = images[:batch]
        with peak_memory(options.device) as peak:
            for repeat in range(options.repeats + 1):
                patches, extracting = measure(lambda: extract(network, part))  # noqa: B023
                scores = patches[..., 0].unsqueeze(1)
                _, mapping = measure(lambda: network.anomaly_map_generator(interpolate(scores, size, mode="bilinear")))  # noqa: B023
                _, whole = measure(lambda: network(part))  # noqa: B023
                if not repeat:  # it warms up
                    continue
                parts = {"backbone": extracting, "search": whole - extracting - mapping, "map": mapping, "whole": whole}
                for stage, seconds in parts.items():
                    figures.setdefault(f"batch {batch}: {stage} [ms]", []).append(1e3 * seconds)
        figures[f"batch {batch}: peak memory [MiB]"] = [peak()]
    return figures | (compare(model, options) if name != BASELINE else {})


def compare(model: AnomalibModule, options: argparse.Namespace) -> dict[str, list[float]]:
    """Build memory banks from equal features on the CPU and on the device; return how similar they are."""
    images = kolektor_images(options.datasets, min(options.images, options.compared), options.size)
    features = torch.cat([extract(model.model, part.to(options.device)).cpu() for part in images.split(TRAINING_BATCH)])
    builder = model.model.memory_bank_builder
    expected, found = builder.fit(features), builder.fit(features.to(options.device))
    same = torch.isin(found.indices.cpu(), expected.indices).float().mean()
    reference = expected.scores.fused
    difference = ((found.scores.fused.cpu() - reference).abs() / reference.abs().clamp_min(1e-12)).max()
    return {
        "rows as on the CPU [%]": [100 * float(same)],
        "scores, largest difference [1e-6]": [1e6 * float(difference)],
    }


def main() -> None:
    """Run every model, and print the tables."""
    arguments = models_parser(__doc__)
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument(
        "--centers", type=int, help="of Anomalib's coreset that are timed (default: all; 200 on a CPU)"
    )
    arguments.add_argument("--compared", type=int, default=64, help="images whose banks are compared with the CPU's")
    arguments.add_argument("--repeats", type=int, default=10)
    options = parse(arguments)
    if options.device == "cpu" and options.centers is None:
        options.centers = CPU_CENTERS
    torch.set_num_threads(options.threads)
    place = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{describe_machine()}\n{place}", flush=True)

    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in options.models:
        # one process is enough for a test
        figures = run(name, options) if options.quick else in_process(options.threads, run, name, options)
        print(f"# {name}: {figures}", flush=True)
        for row, values in figures.items():
            key = "wall" if len(values) > 1 else "value"
            rows.setdefault(row, {})[name] = [{key: value} for value in values]
    title = (
        f"{options.backbone}, {options.images} training images of {options.size} px, coreset {options.ratio}, {place}"
        + f"; Patchcore's coreset extrapolated from {options.centers} centers" * bool(options.centers)
    )
    report(options, title, rows)


if __name__ == "__main__":
    main()
