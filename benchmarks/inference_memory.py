# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Memory at inference: one image of 1,024 px against a large memory bank, in torch, ONNX Runtime and OpenVINO.

WideResNet50-2 (``layer2``, ``layer3``: 1,536 channels, untrained, since there are no weights for it) gives 16,384
patches for such an image. The bank has 100,000 patches of Kolektor's images, enlarged. The distances of all pairs would
take 6.1 GiB. Each runtime has its own process. The table has the peak memory while it scores the first image, above the
memory after loading, and the same with a bank of 16 rows, which shows the backbone's share.

"plain" is the search without an index, as on a GPU and in exported files. ``--patchcore`` adds Anomalib's PatchCore
with a bank of ``--patchcore-rows``, since its export needs too much memory with the whole bank.

Example::

    python benchmarks/inference_memory.py
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.models import Patchcore
from anomalib.models.components import AnomalibModule

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components.search import exact
from common import MEAN, STD, PeakMemory, describe_machine, in_process, kolektor_images, parser

TIMES = ("load", "peak", "seconds")


@torch.no_grad()
def export(options: argparse.Namespace, rows: int, folder: Path, patchcore: bool, fixed: bool) -> None:
    """Make a model with real features in its bank, and export it to all formats."""
    settings: dict[str, Any] = {"backbone": options.backbone, "layers": ["layer2", "layer3"], "pre_trained": False}
    torch.manual_seed(0)
    settings |= {"visualizer": False, "post_processor": False}
    # Exports for any size need a resize: the example that Anomalib exports with has images of 2 x 2
    settings["pre_processor"] = SoftPatch.configure_pre_processor((options.size, options.size))
    ours = SoftPatch(**settings).eval()
    images = kolektor_images(options.datasets, options.images, options.size)
    features = []
    for image in images[:-1]:
        features.append(ours.model.extract(image[None])[0].flatten(0, 1))
        if sum(map(len, features)) >= rows:
            break
    bank = torch.cat(features)[:rows].contiguous()
    if len(bank) < rows:
        msg = f"{options.images - 1} images have {len(bank)} patches, {rows} are asked for: see --images."
        raise SystemExit(msg)
    del features
    model: AnomalibModule = ours
    if patchcore:
        model = Patchcore(**settings, num_neighbors=1)
        model.model.feature_extractor.load_state_dict(ours.model.feature_extractor.backbone.state_dict())
        model.eval()
    else:
        model.model.weights, model.model.bank_ranges = torch.ones(rows), ((0, rows),)
    model.model.memory_bank = bank
    image = images[-1:] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    np.save(folder / "image.npy", image.numpy())
    torch.save(model, folder / "model.pt")
    kwargs = {"verbose": False} | ({"dynamic_shapes": None} if fixed else {})
    size = (options.size, options.size) if fixed else None
    model.to_openvino(folder, input_size=size, onnx_kwargs=dict(kwargs))
    model.to_onnx(folder, input_size=size, **kwargs)


def score(folder: Path, runtime: str, threads: int) -> dict[str, float]:
    """Load an exported model and score an image."""
    image = np.load(folder / "image.npy")
    with PeakMemory() as loading:
        if runtime.startswith("torch"):
            if "plain" in runtime:
                exact.SMALLEST_INDEX = float("inf")
            model = torch.load(folder / "model.pt", weights_only=False).eval()
            run = torch.no_grad()(lambda: model(torch.from_numpy(image)))
        elif runtime == "onnxruntime":
            import onnxruntime  # noqa: PLC0415

            session_options = onnxruntime.SessionOptions()
            session_options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(folder / "weights" / "onnx" / "model.onnx", session_options)
            run = lambda: session.run(None, {session.get_inputs()[0].name: image})  # noqa: E731
        else:
            import openvino  # noqa: PLC0415

            config = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads,
            }
            path = folder / "weights" / "openvino" / "model.xml"
            compiled = openvino.Core().compile_model(str(path), "CPU", config)
            run = lambda: compiled(image)  # noqa: E731
    with PeakMemory() as memory:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    return {"load": loading.peak_with_files / 2**20, "peak": memory.peak / 2**20, "seconds": seconds}


def main() -> None:
    """Export, score, and print the table."""
    arguments = parser(__doc__)
    arguments.set_defaults(backbone="wide_resnet50_2")
    arguments.add_argument("--size", type=int, default=1024, help="height and width of the image")
    arguments.add_argument("--rows", type=int, default=100_000, help="rows of the bank")
    arguments.add_argument("--images", type=int, default=9, help="images: of the bank, and the last one is scored")
    arguments.add_argument("--runtimes", nargs="+", default=["torch", "torch, plain", "onnxruntime", "openvino"])
    arguments.add_argument("--fixed", action="store_true", help="export for one image of this size, not for any")
    arguments.add_argument("--patchcore", action="store_true", help="Anomalib's PatchCore too")
    arguments.add_argument("--patchcore-rows", type=int, default=20_000)
    options = arguments.parse_args()
    if options.quick:
        options.backbone, options.size, options.rows, options.patchcore_rows = "resnet18", 256, 8000, 8000
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    settings: list[tuple[str, int, bool]] = [("SoftPatch", options.rows, False), ("SoftPatch", 16, False)]
    if options.patchcore:
        settings += [("PatchCore", options.patchcore_rows, True), ("PatchCore", 16, True)]
    print("\n| model | rows | runtime | loaded, MiB | peak above it, MiB | s |\n|---|---:|---|---:|---:|---:|")
    for name, rows, patchcore in settings:
        with tempfile.TemporaryDirectory() as name_of_folder:
            folder = Path(name_of_folder)
            fixed = patchcore or options.fixed  # Anomalib's PatchCore takes a fixed number of patches
            in_process(options.threads, export, options, rows, folder, patchcore, fixed)
            for runtime in options.runtimes:
                if patchcore and runtime == "torch, plain":
                    continue
                result: dict[str, Any] = in_process(options.threads, score, folder, runtime, options.threads)
                cells = " | ".join(f"{result[key]:.0f}" if key != "seconds" else f"{result[key]:.1f}" for key in TIMES)
                print(f"| {name} | {rows} | {runtime} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
