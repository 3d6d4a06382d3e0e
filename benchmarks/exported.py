# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Latency of exported files: ours against Anomalib's PatchCore with the same memory bank and backbone.

One image of 256 px, WideResNet50-2 (``layer2``, ``layer3``: 1,536 channels) against a coreset of the patches of
Kolektor's training images, in ONNX Runtime and OpenVINO at f32. The backbone is untrained, since the shared set has no
weights for it. Files take turns, so that other work on the machine meets all alike; times are those of the processor
(all threads of this process together) and of the wall clock, and ratios those of each turn.

Anomalib's files are exported for one image of this size, since its PatchCore has no other, and score the images of a
batch one after the other; ours take any. "Two banks" are the whole bank and the first two thirds of it.

Example::

    python benchmarks/exported.py --threads 1 --save exported.json
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from anomalib.models import Patchcore
from anomalib.models.components.dimensionality_reduction import SparseRandomProjection

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components import k_center_greedy
from common import MEAN, STD, describe_machine, load_images, new_file, parser, print_table, save_results

MODELS = ("Anomalib Patchcore", "SoftPatch, plain search", "SoftPatch", "SoftPatch, two banks")
KINDS = ("good", "defect")
RUNTIMES = ("OpenVINO", "ONNX Runtime")


def in_openvino(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scores images, shape ``(n, 3, height, width)``, by an OpenVINO file at f32."""
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(file, "CPU", config)
    return lambda images: compiled(images)["pred_score"].copy()


def in_onnx_runtime(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scores images, shape ``(n, 3, height, width)``, by an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options)
    name = session.get_inputs()[0].name
    return lambda images: session.run(["pred_score"], {name: images})[0]


def choose_coreset(features: torch.Tensor, size: int) -> torch.Tensor:
    """Choose rows of features, shape ``(patches, channels)``, as PatchCore does."""
    projected = SparseRandomProjection(eps=0.9).fit(features).transform(features)
    return features[k_center_greedy(projected, min(size, len(features)), first=0)]


@torch.no_grad()
def export(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Make models with one bank, export each, return their folders."""
    size = (options.size, options.size)
    settings: dict[str, Any] = {"backbone": options.backbone, "layers": options.layers, "pre_trained": False}
    settings |= {"visualizer": False, "post_processor": False}
    settings["pre_processor"] = SoftPatch.configure_pre_processor(size)
    torch.manual_seed(0)
    ours = SoftPatch(**settings).eval()
    images = load_images([Path(options.datasets) / "kolektor" / "train" / "good"], options.images, options.size)
    features = torch.cat([ours.model.extract(part).flatten(0, 2) for part in images.split(8)])
    bank = choose_coreset(features, options.bank)
    ours.model.set_memory_bank(bank, torch.ones(len(bank)), ((0, len(bank)),))
    patchcore = Patchcore(**settings, num_neighbors=1).eval()
    patchcore.model.feature_extractor.load_state_dict(ours.model.feature_extractor.backbone.state_dict())
    patchcore.model.memory_bank = bank
    folders = {name: folder / name for name in MODELS}
    for name, path in folders.items():
        if "two banks" in name:
            ours.model.set_memory_bank(bank, torch.ones(len(bank)), ((0, len(bank)), (0, 2 * len(bank) // 3)))
        fixed = name.startswith("Anomalib")
        model = patchcore if fixed else ours
        kwargs: dict[str, Any] = {"verbose": False} | (
            {"dynamic_shapes": None, "external_data": False} if fixed else {}
        )
        plain = "plain" in name
        if plain:
            ours.model.pruned_graphs = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        model.to_openvino(path, input_size=size if fixed else None, onnx_kwargs=dict(kwargs))
        model.to_onnx(path, input_size=size if fixed else None, **kwargs)
        if plain:
            del ours.model.pruned_graphs
    return folders


def main() -> None:
    """Export, score images in turn, print the table."""
    arguments = parser(__doc__)
    arguments.set_defaults(backbone="wide_resnet50_2")
    arguments.add_argument("--layers", nargs="+", default=["layer2", "layer3"])
    arguments.add_argument("--size", type=int, default=256, help="height and width of the images")
    arguments.add_argument("--images", type=int, default=96, help="training images that the bank is chosen from")
    arguments.add_argument("--bank", type=int, default=21_000, help="rows of the bank")
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images that are scored at once")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--save", type=new_file, help="JSON file to write all figures to, see docs/results/")
    options = arguments.parse_args()
    if options.quick:
        options.backbone, options.images, options.bank, options.repeats = "resnet18", 8, 3000, 2
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    folders = {kind: Path(options.datasets) / "kolektor" / "test" / kind for kind in KINDS}
    columns = [(runtime, size, kind) for runtime in RUNTIMES for size in options.batches for kind in KINDS]
    rows: dict[str, list[list[dict[str, float]]]] = {name: [[] for _ in columns] for name in MODELS}
    with tempfile.TemporaryDirectory() as temporary:
        paths = export(options, Path(temporary))
        files = {}
        for name, path in paths.items():
            openvino_file, onnx_file = (path / "weights" / part for part in ("openvino/model.xml", "onnx/model.onnx"))
            bytes_of_file = openvino_file.with_suffix(".bin").stat().st_size
            files[name, "OpenVINO"] = in_openvino(openvino_file, options.threads), bytes_of_file
            files[name, "ONNX Runtime"] = in_onnx_runtime(onnx_file, options.threads), onnx_file.stat().st_size
        for column, (runtime, size, kind) in enumerate(columns):
            images = (load_images([folders[kind]], size, options.size) * std + mean).numpy()
            for repeat in range(options.repeats + 1):
                for name in MODELS:
                    run, bytes_of_file = files[name, runtime]
                    parts = np.split(images, size) if name == MODELS[0] else [images]
                    wall, processor = time.perf_counter(), time.process_time()
                    score = max(float(run(part).max()) for part in parts)
                    times = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
                    if repeat == 0:  # warms up
                        continue
                    values = {key: 1000 * seconds / size for key, seconds in times.items()}
                    first = rows[MODELS[0]][column][repeat - 1] if name != MODELS[0] else values
                    values |= {f"{key}_ratio": 100 * values[key] / first[key] for key in times}
                    rows[name][column].append(values | {"file": bytes_of_file / 2**20, "score": score})
    headings = ["", *(f"{runtime}, {kind} x {size}" for runtime, size, kind in columns)]
    keys = ["processor", "processor_ratio"]
    for shown in (keys, ["wall", "wall_ratio"], ["file"], ["score"]):
        print(f"\n{' / '.join(shown)}\n")
        print_table(headings, rows, shown)
    title = (
        "One image in an exported file: milliseconds of processor time / the same in % of Anomalib's Patchcore with "
        f"the same bank ({options.backbone}, untrained, {options.size} px, {options.bank:,} rows, f32; a normal and a "
        "defective image, or a batch of each)"
    )
    save_results(options.save, title, headings, rows, keys)


if __name__ == "__main__":
    main()
