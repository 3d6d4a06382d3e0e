# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Latency of exported files: ours against Anomalib's PatchCore with the same memory bank and backbone.

One image of 256 px, WideResNet50-2 (``layer2``, ``layer3``: 1,536 channels), is scored against a coreset of the patches
of Kolektor's training images, in ONNX Runtime and OpenVINO at f32. The backbone is untrained, since there are no
weights for it. Files take turns, so that other work on the machine affects all alike. One runtime follows the other,
since each keeps the memory of its largest batch. Times are processor times (all threads of this process) and wall
times, and ratios are those of each turn.

Anomalib's files are exported for one image of this size, since its PatchCore has no other export, and score the images
of a batch one after the other; ours take any number and size. SoftPatch+ as published has the banks of a fit with its
paper's discriminators, shares and weights. With this untrained network, its default removes nothing and has one bank.
The two banks here therefore have the sizes, and share as many rows, as those of a fit with 1,368 channels of
MobileNetV2. The rows that only the first bank has are its first centers, the farthest apart of all, which makes the
bounds from the others loose.

Example::

    python benchmarks/exported.py --threads 1 --save exported.json
"""

import argparse
import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from anomalib.models import Patchcore
from anomalib.models.components.dimensionality_reduction import SparseRandomProjection

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components import DenoisingMemoryBank, MemoryBank, k_center_greedy
from common import MEAN, STD, describe_machine, load_images, new_file, parser, print_table, save_results

BASELINE, ONE_BANK = "Anomalib Patchcore", "SoftPatch"
PAPER = "SoftPatchPlus as published"
# For each model: the rows of its banks, relative to one bank, and the smoothing of its image score. PAPER is fitted
MODELS = {
    BASELINE: (((0, 1),), 0.0),
    "SoftPatch, plain search": (((0, 1),), 0.0),
    ONE_BANK: (((0, 1),), 0.0),
    "SoftPatchPlus, two banks": (((0, 1), (0.48, 1.25)), 1.0),
    PAPER: ((), 0.0),
}
RATIOS = {"of_baseline": BASELINE, "of_one_bank": ONE_BANK}  # ratio of processor times in the same turn
HEADINGS = {
    "processor": "processor time [ms]",
    **{key: f"% of {name}'s" for key, name in RATIOS.items()},
    "wall": "wall time [ms]",
    "file": "file [MiB]",
}
KINDS = ("good", "defect")
RUNTIMES = ("OpenVINO", "ONNX Runtime")


def in_openvino(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scores images, shape ``(n, 3, height, width)``, with an OpenVINO file at f32."""
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(file, "CPU", config)
    return lambda images: compiled(images)["pred_score"].copy()


def in_onnx_runtime(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scores images, shape ``(n, 3, height, width)``, with an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options)
    name = session.get_inputs()[0].name
    return lambda images: session.run(["pred_score"], {name: images})[0]


def write_openvino(file: Path) -> None:
    """Convert an ONNX file to OpenVINO next to it, as ``to_openvino`` does, without a second export."""
    openvino.save_model(openvino.convert_model(file), file.with_suffix(".xml"), compress_to_fp16=False)


def in_runtime(runtime: str, file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scores images with an ONNX file, or with the OpenVINO file next to it."""
    if runtime == "OpenVINO":
        return in_openvino(file.with_suffix(".xml"), threads)
    return in_onnx_runtime(file, threads)


def choose_coreset(features: torch.Tensor, size: int) -> torch.Tensor:
    """Choose rows of features, shape ``(patches, channels)``, as PatchCore does."""
    projected = SparseRandomProjection(eps=0.9).fit(features).transform(features)
    return features[k_center_greedy(projected, min(size, len(features)), first=0)]


@torch.no_grad()
def export(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Make models of the same patches, export each, and return their folders."""
    size = (options.size, options.size)
    settings: dict[str, Any] = {"backbone": options.backbone, "layers": options.layers, "pre_trained": False}
    settings |= {"visualizer": False, "post_processor": False}
    settings["pre_processor"] = SoftPatch.configure_pre_processor(size)
    torch.manual_seed(0)
    ours = SoftPatch(**settings).eval()
    images = load_images([Path(options.datasets) / "kolektor" / "train" / "good"], options.images, options.size)
    grids = torch.cat([ours.model.extract(part) for part in images.split(8)])
    features = grids.flatten(0, 2)
    ratio = (options.bank + 0.5) / len(features)  # half a row more, because the product is rounded down
    published = DenoisingMemoryBank(("lof", "gaussian"), (0.15, 0.5), ratio).fit(grids)
    rows = choose_coreset(
        features, int(max(stop for ranges, _ in MODELS.values() for _, stop in ranges) * options.bank)
    )
    patchcore = Patchcore(**settings, num_neighbors=1).eval()
    patchcore.model.feature_extractor.load_state_dict(ours.model.feature_extractor.backbone.state_dict())
    patchcore.model.memory_bank = rows[: options.bank].clone()
    folders = {name: folder / str(number) for number, name in enumerate(MODELS)}
    for name, path in folders.items():
        sizes, ours.model.score_smoothing = MODELS[name]
        if name == PAPER:
            ours.model.set_memory_bank(published)
        else:
            ranges = tuple((int(start * options.bank), int(stop * options.bank)) for start, stop in sizes)
            bank = rows[: ranges[-1][1]].clone()  # the first centers of a coreset are a smaller coreset
            ours.model.set_memory_bank(MemoryBank(bank, torch.ones(len(bank)), None, ranges))
        fixed = name == BASELINE
        model = patchcore if fixed else ours
        kwargs: dict[str, Any] = {"verbose": False} | (
            {"dynamic_shapes": None, "external_data": False} if fixed else {}
        )
        plain = "plain" in name
        if plain:
            ours.model.pruned_graphs = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        file = model.to_onnx(path, input_size=size if fixed else None, **kwargs)
        write_openvino(file)
        if plain:
            del ours.model.pruned_graphs
    return folders


def load(runtime: str, folder: Path, threads: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Return a function that scores images with an exported file, and the file's size in bytes."""
    file = folder / "weights" / "onnx" / "model.onnx"
    weights = file.with_suffix(".bin") if runtime == "OpenVINO" else file
    return in_runtime(runtime, file, threads), weights.stat().st_size


def measure_turns(
    files: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], int]], images: np.ndarray, repeats: int
) -> Iterator[dict[str, dict[str, float]]]:
    """Score a batch of images with each file in turn; yield the numbers of each turn, except for the first."""
    for repeat in range(repeats + 1):
        turn: dict[str, dict[str, float]] = {}
        for name, (run, bytes_of_file) in files.items():
            parts = np.split(images, len(images)) if name == BASELINE else [images]
            wall, processor = time.perf_counter(), time.process_time()
            score = max(float(run(part).max()) for part in parts)
            times = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
            turn[name] = {key: 1000 * seconds / len(images) for key, seconds in times.items()}
            turn[name] |= {"file": bytes_of_file / 2**20, "score": score}
        for figures in turn.values():
            for key, other in RATIOS.items():
                figures[key] = 100 * figures["processor"] / turn[other]["processor"]
        if repeat:
            yield turn


def main() -> None:
    """Export, score images in turn, and print the table."""
    arguments = parser(__doc__)
    arguments.set_defaults(backbone="wide_resnet50_2")
    arguments.add_argument("--layers", nargs="+", default=["layer2", "layer3"])
    arguments.add_argument("--size", type=int, default=256, help="height and width of the images")
    arguments.add_argument("--images", type=int, default=209, help="training images that the bank is chosen from")
    arguments.add_argument("--bank", type=int, default=21_401, help="rows of one bank")
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images that are scored at once")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--save", type=new_file, help="JSON file to write all numbers to, see docs/results/")
    options = arguments.parse_args()
    if options.quick:
        # Banks too small for a pruned search, whose export takes minutes
        options.backbone, options.images, options.bank, options.repeats = "test_resnet", 8, 800, 2
        for name in ("SoftPatch, plain search", "SoftPatchPlus, two banks", PAPER):  # each saves an export
            del MODELS[name]
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    folders = {kind: Path(options.datasets) / "kolektor" / "test" / kind for kind in KINDS}
    rows: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = export(options, Path(temporary))
        for runtime in RUNTIMES:
            files = {name: load(runtime, path, options.threads) for name, path in paths.items()}
            for size, kind in product(options.batches, KINDS):
                images = (load_images([folders[kind]], size, options.size) * std + mean).numpy()
                turns = list(measure_turns(files, images, options.repeats))
                rows[f"{runtime}, batch {size}, {kind}"] = [[turn[name] for turn in turns] for name in MODELS]
            del files
            gc.collect()
    title = (
        "One image in an exported file, milliseconds of processor time "
        f"({options.backbone}, untrained, {options.size} px, f32, banks of {options.bank:,} rows; normal and defective "
        "images, alone or in batches)"
    )
    headings = ["", *MODELS]
    save_results(options.save, title, headings, rows, ["processor"], medians=True)
    for key, heading in HEADINGS.items():
        print()
        print_table([heading, *MODELS], rows, [key], medians=True)


if __name__ == "__main__":
    main()
