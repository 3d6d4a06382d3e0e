# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The comparison that users would make: Anomalib's Patchcore, SoftPatch and SoftPatch+ in one run on one machine.

The setup is 209 training images of KolektorSDD, 256 px, wide_resnet50_2 (layer2, layer3: 1,024 patches x 1,536
channels), coreset 0.1. SoftPatch+ has its defaults or its paper's settings
(``configs/model/soft_patch_plus_paper.yaml``), and all models have PatchCore's patch embedding. The backbone is
untrained, since there are no weights for it, and the same in all models. Each model is fitted in its own process. Then
all run in turn, so that other work on the machine affects all alike: from the checkpoint in torch, from an ONNX file in
ONNX Runtime and from an OpenVINO file at f32. Test images are normal and defective in turn.

Anomalib's coreset would take an hour or more: a few hundred of its centers are timed, and the rest is extrapolated. In
the exported files, Patchcore has a coreset of its features that :func:`k_center_greedy` chose in the same way.
Anomalib exports Patchcore for a fixed image size, with one file for each batch size; our files take any size.

Example::

    python benchmarks/comparison.py --threads 1 --plot comparison.png
"""

import argparse
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from anomalib.models import Patchcore
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Trainer

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from common import (
    MEAN,
    STD,
    PeakMemory,
    describe_machine,
    in_process,
    kolektor_images,
    load_images,
    new_file,
    parser,
    print_table,
    save_results,
)
from exported import choose_coreset, in_runtime, write_openvino
from fit import fit_anomalib, fit_ours, warm_up

PAPER_FILE = Path(__file__).resolve().parents[1] / "configs" / "model" / "soft_patch_plus_paper.yaml"
PAPER = yaml.safe_load(PAPER_FILE.read_text(encoding="utf-8"))["model"]["init_args"]
OWN_TO_SETTINGS = (
    "discriminators",
    "lof_k",
    "classification_threshold",
    "segmentation_threshold",
    "soft_weight",
    "min_images",
    "neighborhood",
    "score_smoothing",
)
BASELINE = "Patchcore"
MODELS: dict[str, tuple[type[AnomalibModule], dict[str, Any]]] = {
    BASELINE: (Patchcore, {}),
    "SoftPatch": (SoftPatch, {}),
    "SoftPatchPlus (paper)": (SoftPatchPlus, {name: PAPER[name] for name in OWN_TO_SETTINGS}),
    "SoftPatchPlus": (SoftPatchPlus, {}),
}
HEADINGS = {
    "value": "measured once",
    "value_ratio": f"% of {BASELINE}'s",
    "wall": "median and range",
    "wall_ratio": f"% of {BASELINE}'s in the same turn",
    "processor_ratio": "the same of processor time",
}
Run = Callable[[np.ndarray], Any]
RUNTIMES = ("torch", "ONNX Runtime", "OpenVINO")
TRAINING_BATCH = 8
FEATURES, BANK = "fit: features [s]", "fit: memory bank [s]"
OUT_OF_BAG = (
    "fit: out-of-bag scores [s]"  # for the decision threshold, which Patchcore does not have without labeled images
)


def make_model(name: str, options: argparse.Namespace) -> AnomalibModule:
    """Make a model with the weights that all models share."""
    settings: dict[str, Any] = {
        "backbone": options.backbone,
        "layers": options.layers,
        "pre_trained": False,
        "coreset_sampling_ratio": options.ratio,
        "num_neighbors": 1,
        "pre_processor": Patchcore.configure_pre_processor((options.size, options.size)),
        "post_processor": False,
        "evaluator": False,
        "visualizer": False,
    }
    kind, own = MODELS[name]
    if name != BASELINE:
        return kind(**settings, **own, noise_report=False)
    model = kind(**settings)
    backbone = SoftPatch(**settings).model.feature_extractor.backbone
    model.model.feature_extractor.load_state_dict(backbone.state_dict())
    return model


def fit_by_stage(
    name: str, model: AnomalibModule, images: torch.Tensor, options: argparse.Namespace
) -> tuple[dict[str, float], torch.Tensor | None]:
    """Fit a model; return seconds by stage and, if its coreset was only timed in part, all features."""
    network = model.model.train()
    network.feature_extractor.eval()
    warm_up(network.feature_extractor, images)
    if name != BASELINE:
        return fit_ours(network, images, TRAINING_BATCH, (options.size, options.size)), None
    stages, features = fit_anomalib(network, images, TRAINING_BATCH, options.ratio, options.centers)
    return stages, features if len(network.memory_bank) < int(options.ratio * len(features)) else None


@torch.no_grad()
def fit(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Fit a model, write its checkpoint and its exported files, and return seconds and MiB."""
    for library in ("torch.onnx", "onnxscript"):  # long messages about a conversion of the opset that fails
        logging.getLogger(library).setLevel(logging.ERROR)
    images = kolektor_images(options.datasets, options.images, options.size)
    model = make_model(name, options)
    network, size = model.model, (options.size, options.size)
    with PeakMemory() as memory:
        stages, features = fit_by_stage(name, model, images, options)
    if features is not None:
        network.memory_bank = choose_coreset(features, int(options.ratio * len(features)))
    figures = {"peak": memory.peak / 2**20, "rows": len(network.memory_bank), "stages": stages}

    folder.mkdir()
    model.eval()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "model.ckpt")
    for batch in options.batches if name == BASELINE else (None,):
        fixed = {} if batch is None else {"dynamic_shapes": ({0: batch},), "external_data": False}
        path = model.to_onnx(folder, f"model{batch or ''}", None if batch is None else size, verbose=False, **fixed)
        write_openvino(path)
    files = {"checkpoint": folder / "model.ckpt", "ONNX": path, "OpenVINO": path.with_suffix(".bin")}
    return figures | {kind: file.stat().st_size / 2**20 for kind, file in files.items()}


def load(name: str, runtime: str, batch: int, options: argparse.Namespace, folder: Path) -> Run:
    """Return a function that scores a batch of images with a model's checkpoint or one of its files."""
    if runtime == "torch":
        pre_processor = Patchcore.configure_pre_processor((options.size, options.size))
        # The file is our own, and before Python 3.11.4, Anomalib's enumerations are pickled as code
        own: dict[str, Any] = {"pre_processor": pre_processor, "weights_only": False}
        model = MODELS[name][0].load_from_checkpoint(folder / "model.ckpt", **own).eval()
        return lambda images: model(torch.from_numpy(images)).pred_score.numpy()
    file = folder / "weights" / "onnx" / f"model{batch if name == BASELINE else ''}.onnx"
    return in_runtime(runtime, file, options.threads)


@torch.no_grad()
def measure_latency(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Score images with every model in turn; return the milliseconds of each row's models.

    One runtime follows the other: each keeps the memory of its largest batch, and all together would not fit.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    test, count = Path(options.datasets) / "kolektor" / "test", max(options.batches)
    normal, defective = (load_images([test / kind], count, options.size) * std + mean for kind in ("good", "defect"))
    images = torch.stack((normal, defective), dim=1).flatten(0, 1).numpy()
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    expected: dict[tuple[int, int, str], np.ndarray] = {}  # of torch, which is the first runtime
    difference = 0.0
    for runtime, batch in product(RUNTIMES, options.batches):
        runs = {
            name: load(name, runtime, batch, options, folder / str(number))
            for number, name in enumerate(options.models)
        }
        row = rows.setdefault(latency_row(runtime, batch), {})
        for repeat in range(options.repeats + 1):
            part = np.roll(images, -repeat, axis=0)[:batch].copy()
            for name, score in runs.items():
                wall, processor = time.perf_counter(), time.process_time()
                scores = score(part).flatten()
                figures = {
                    "wall": 1e3 * (time.perf_counter() - wall),
                    "processor": 1e3 * (time.process_time() - processor),
                }
                reference = expected.setdefault((batch, repeat, name), scores)
                difference = max(difference, float(abs(scores / reference - 1).max()))
                if repeat:  # the first turn warms up
                    row.setdefault(name, []).append(figures)
        del runs
        gc.collect()
    print(f"Largest relative difference of image scores to those of torch: {difference:.1e}", flush=True)
    return rows


def latency_row(runtime: str, batch: int) -> str:
    """Return the name of a row of latencies."""
    return f"{runtime}, batch {batch} [ms]"


def fit_rows(fits: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return the measurements of the fits: for each row, the number of each model."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, figures in fits.items():
        stages = dict(figures["stages"])
        features, out_of_bag = stages.pop("features"), stages.pop("out-of-bag scores", None)
        values = {
            FEATURES: features,
            BANK: sum(stages.values()),
            OUT_OF_BAG: out_of_bag,
            "fit: peak memory [MiB]": figures["peak"],
            "rows of the memory bank": figures["rows"],
            **{f"{kind} file [MiB]": figures[kind] for kind in ("checkpoint", "ONNX", "OpenVINO")},
        }
        for row, value in values.items():
            rows.setdefault(row, {})[name] = [] if value is None else [{"value": float(value)}]
    return rows


def report(options: argparse.Namespace, title: str, rows: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> None:
    """Print and save the numbers, and their ratios, in %, to the baseline's in the same turn.

    Args:
        options: Options of the script: which models, and where to save.
        title: What was measured, and on what.
        rows: For each row and each model, the numbers of the runs; a single measurement is the ``value``.
    """
    for columns in rows.values():
        for runs in columns.values():
            for run, baseline in zip(runs, columns.get(BASELINE, ()), strict=False):
                run |= {f"{key}_ratio": 100 * run[key] / baseline[key] for key in tuple(run) if baseline[key]}
    cells = {row: [columns.get(name, []) for name in options.models] for row, columns in rows.items()}
    save_results(options.save, title, ["", *options.models], cells, ["value"], medians=True)
    print(f"\n{title}")
    for key, heading in HEADINGS.items():
        if any(key in run for columns in rows.values() for runs in columns.values() for run in runs):
            print()
            print_table([heading, *options.models], cells, [key], medians=True)


def plot(rows: Mapping[str, Mapping[str, list[dict[str, float]]]], batches: Sequence[int], path: Path) -> None:
    """Draw the times of the fit, memory and file sizes, and the latencies."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    models = list(rows[FEATURES])

    def values(row: str, name: str) -> list[float]:
        return [run.get("value", run.get("wall")) for run in rows[row][name]] or [float("nan")]

    def bars(axis: Any, names: Mapping[str, str], scale: float) -> None:
        """Draw a group of bars for each row, with a bar for each model."""
        for index, name in enumerate(models):
            runs = [[value / scale for value in values(row, name)] for row in names]
            middle = [float(np.median(each)) for each in runs]
            spread = [
                np.subtract(middle, [min(each) for each in runs]),
                np.subtract([max(each) for each in runs], middle),
            ]
            places = np.arange(len(names)) + 0.8 * (index + 0.5) / len(models) - 0.4
            repeated = max(map(len, runs)) > 1
            axis.bar(places, middle, 0.8 / len(models), yerr=spread if repeated else None, capsize=2, label=name)
        axis.set_xticks(range(len(names)), names.values())

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    fits, sizes = axes[0]
    bars(fits, {row: row.removeprefix("fit: ").removesuffix(" [s]") for row in (FEATURES, BANK, OUT_OF_BAG)}, 1)
    fits.set(yscale="log", ylabel="Time [s]", title="Fit")
    bars(sizes, {row: row.split(" [")[0].replace(" file", "").replace(": ", ",\n") for row in rows if "MiB" in row}, 1)
    sizes.set(ylabel="Size [MiB]", title="Memory and files")
    for axis, batch in zip(axes[1], (batches[0], batches[-1]), strict=True):
        bars(axis, {latency_row(runtime, batch): runtime for runtime in RUNTIMES}, 1e3)
        axis.set(ylabel="Time [s]", title=f"{batch} image{'s' * (batch > 1)} at a time")
    for axis in axes.flat:
        axis.grid(axis="y", alpha=0.3)
    fits.legend()
    figure.savefig(path, dpi=150)
    print(f"\nPlot: {path}")


def models_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of the benchmarks that fit all models and score images."""
    arguments = parser(description)
    arguments.set_defaults(backbone="wide_resnet50_2")
    arguments.add_argument("--layers", nargs="+", default=["layer2", "layer3"])
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments.add_argument("--size", type=int, default=256, help="height and width of the images")
    arguments.add_argument("--images", type=int, default=209, help="training images")
    arguments.add_argument("--ratio", type=float, default=0.1, help="coreset_sampling_ratio")
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images scored at a time")
    arguments.add_argument("--save", type=new_file, help="JSON file to write all numbers to, see docs/results/")
    return arguments


def parse(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options, with small sizes for ``--quick``."""
    options = arguments.parse_args()
    if options.quick:
        options.backbone, options.size, options.images, options.repeats = "test_resnet", 64, 8, 2
        options.models, options.batches = [BASELINE, "SoftPatchPlus (paper)"], [2]
    return options


def main() -> None:
    """Fit, export, score in turn, print the tables, and draw the plot."""
    arguments = models_parser(__doc__)
    arguments.add_argument("--centers", type=int, default=200, help="of Anomalib's coreset that are timed")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--plot", type=Path, default=Path("comparison.png"), help="where to draw the plot")
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    with tempfile.TemporaryDirectory() as name_of_folder:
        folder, fits = Path(name_of_folder), {}
        for number, name in enumerate(options.models):
            arguments_of_fit = name, options, folder / str(number)
            # one process is enough for a test
            fits[name] = (
                fit(*arguments_of_fit) if options.quick else in_process(options.threads, fit, *arguments_of_fit)
            )
            print(f"# {name}: {fits[name]}", flush=True)
        rows = fit_rows(fits) | measure_latency(options, folder)
    title = (
        f"{options.backbone}, {options.images} training images of {options.size} px, coreset {options.ratio}, "
        f"{options.threads} thread{'s' * (options.threads > 1)}; Patchcore's coreset extrapolated from "
        f"{options.centers} centers"
    )
    report(options, title, rows)
    plot(rows, options.batches, options.plot)


if __name__ == "__main__":
    main()
