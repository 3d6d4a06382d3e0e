# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Exported models with and without compression: file size, AUROC and latency, against FP32 and Anomalib's PatchCore.

Each model is trained on Kolektor (256 px, MobileNetV2 ``blocks.2`` and ``blocks.4``) and exported to OpenVINO with each
of Anomalib's compression types. INT8_PTQ and INT8_ACQ are calibrated with normal training images. In Anomalib, INT8_ACQ
also uses the test set to decide which operations go back to FP32 (largest drop of the image AUROC: ``--max-drop``).
``--search`` adds rows in which the search in the memory bank is also compressed, which this package prevents. Latency
is the median time of one image in OpenVINO's runtime, with all models in turn: in float32, and in the runtime's own
choice (bfloat16 on processors that support it). Torch models with a half-precision backbone follow. Anomalib's
normalization clips scores beyond those of the validation set, so that a compression that raises all scores makes them
equal; ``--raw`` leaves it out.

PatchCore is Anomalib's ``Patchcore``. Its export takes a fixed number of images of a fixed size, so that each model is
also exported that way, and its latency is the baseline. PatchCore has the coreset of
``SoftPatch(threshold=0, soft_weight=False)``. The tests prove that this is the coreset of its own selection, in a
hundredth of the time.

Example::

    python benchmarks/compression.py
"""

import argparse
import functools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from anomalib.metrics import AUROC
from anomalib.models import Patchcore
from anomalib.models.components import AnomalibModule
from anomalib.models.components.base.export_mixin import ExportMixin
from anomalib.post_processing import PostProcessor
from sklearn.metrics import roc_auc_score

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from common import describe_machine, measure, parser

PRECISIONS = {"f32": {"INFERENCE_PRECISION_HINT": "f32"}, "default": {}}
COMPRESSIONS = {"FP32": None} | {kind.name: kind for kind in CompressionType}
Outputs = tuple[np.ndarray, np.ndarray]


class ImageAUROC(AUROC):
    """AUROC of the image scores, reset after each model, which Anomalib does not do."""

    def __init__(self) -> None:
        super().__init__(fields=["pred_score", "gt_label"])

    def compute(self) -> float:
        """Return the AUROC and forget the images."""
        value = float(super().compute())
        self.reset()
        return value


class Benchmark:
    """Train, export and run models on one set.

    Args:
        options: Command line.
        folder: Folder for exported files.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.data = self.load("same_as_test")
        self.calibration = self.load("from_train")
        self.files: dict[tuple[str, str], Path] = {}
        batches = list(self.data.test_dataloader())
        self.images = torch.cat([batch.image for batch in batches]).numpy()
        self.labels = torch.cat([batch.gt_label for batch in batches]).numpy()
        self.masks = torch.cat([batch.gt_mask for batch in batches]).numpy().astype(bool)

    def load(self, val_split_mode: str) -> MVTecAD:
        """Load the set, or a few of its images with ``--quick``."""
        data = MVTecAD(self.options.datasets, "kolektor", num_workers=0, seed=0, val_split_mode=val_split_mode)
        data.setup()
        if self.options.quick:
            data.train_data = data.train_data.subsample(range(32))
            data.test_data = data.test_data.subsample([*range(8), *range(-8, 0)])
            data.val_data = data.test_data if val_split_mode == "same_as_test" else data.val_data.subsample(range(8))
        data.setup = lambda stage=None: None  # keep the reduced set
        return data

    def engine(self) -> Engine:
        """Return an engine for one fit."""
        return Engine(
            default_root_dir=self.folder,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def settings(self) -> dict[str, Any]:
        """Return the arguments that all models share."""
        post_processor = PostProcessor(enable_normalization=False) if self.options.raw else True
        layers = ["blocks.2", "blocks.4"]
        return {
            "backbone": self.options.backbone,
            "layers": layers,
            "visualizer": False,
            "post_processor": post_processor,
        }

    def fit(self, model: AnomalibModule) -> AnomalibModule:
        """Train a model."""
        _, seconds = measure(lambda: self.engine().fit(model, datamodule=self.data))
        print(f"# {type(model).__name__}: fit {seconds:.0f} s", flush=True)
        return model.eval()

    def soft_patch(self, **arguments: Any) -> AnomalibModule:
        """Train SoftPatch."""
        arguments = {"coreset_sampling_ratio": self.options.ratio, "noise_report": False} | arguments
        return self.fit(SoftPatch(**self.settings(), **arguments))

    def soft_patch_plus(self) -> AnomalibModule:
        """Train SoftPatchPlus."""
        ratio = self.options.ratio
        return self.fit(SoftPatchPlus(**self.settings(), coreset_sampling_ratio=ratio, noise_report=False))

    def patchcore(self) -> AnomalibModule:
        """Make Anomalib's Patchcore with SoftPatch's coreset, see the description above."""
        same = self.soft_patch(threshold=0, soft_weight=False)
        model = Patchcore(**self.settings())
        model.model.memory_bank = same.model.memory_bank
        model._is_fitted = torch.tensor([True])
        self.engine().validate(model, datamodule=self.data)  # for its normalization
        return model.eval()

    def export(
        self, name: str, model: AnomalibModule, compression: str, search: bool = False, fixed: bool = False
    ) -> None:
        """Export a model to OpenVINO.

        Args:
            name: Name of the model.
            model: Model.
            compression: See ``COMPRESSIONS``.
            search: Also compress the search in the memory bank, as Anomalib would.
            fixed: Export for one image of 256 px, instead of any number of images of any size.
        """
        row = compression + ", search too" * search + ", fixed size" * fixed
        onnx_kwargs = {"verbose": False} | ({"dynamic_shapes": None} if fixed else {})
        kind = COMPRESSIONS[compression]
        if search:
            model._compress_ov_model = functools.partial(ExportMixin._compress_ov_model, model)
        start = time.perf_counter()
        try:
            path = self.engine().export(
                model,
                ExportType.OPENVINO,
                export_root=self.folder / name / row,
                compression_type=kind,
                input_size=self.images.shape[-2:] if fixed else None,
                onnx_kwargs=onnx_kwargs,
                datamodule=self.calibration,
                metric=ImageAUROC() if kind == CompressionType.INT8_ACQ else None,
                **({"max_drop": self.options.max_drop} if kind == CompressionType.INT8_ACQ else {}),
            )
        finally:
            vars(model).pop("_compress_ov_model", None)
        print(f"# {name} {row}: export {time.perf_counter() - start:.0f} s", flush=True)
        self.files[name, row] = path

    def aurocs(self, run: Callable[[np.ndarray], Outputs]) -> str:
        """Return image and map AUROC in %."""
        outputs = [run(self.images[i : i + 1]) for i in range(len(self.images))]
        scores, maps = (np.concatenate([np.ravel(output[i]) for output in outputs]) for i in (0, 1))
        return f"{100 * roc_auc_score(self.labels, scores):.1f} / {100 * roc_auc_score(self.masks.ravel(), maps):.1f}"

    def latencies(self, runs: dict[Any, Callable[[np.ndarray], Outputs]]) -> dict[Any, float]:
        """Return the median time of one image in milliseconds, in turn, so that other work affects all models alike."""
        times: dict[Any, list[float]] = {key: [] for key in runs}
        for repeat in range(self.options.repeats):
            image = self.images[repeat % len(self.images)][None]
            for key, run in runs.items():
                run(image)  # so that the caches hold this model's data
                start = time.perf_counter()
                run(image)
                times[key].append(1000 * (time.perf_counter() - start))
        return {key: median(values) for key, values in times.items()}


def openvino_runner(path: Path, config: dict[str, str], threads: int) -> Callable[[np.ndarray], Outputs]:
    """Return a function that scores an image with an exported model."""
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads} | config
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(image: np.ndarray) -> Outputs:
        outputs = compiled(image)
        return outputs["pred_score"], outputs["anomaly_map"]

    return run


def torch_runner(model: AnomalibModule) -> Callable[[np.ndarray], Outputs]:
    """Return a function that scores an image with a torch model."""

    @torch.inference_mode()
    def run(image: np.ndarray) -> Outputs:
        outputs = model(torch.from_numpy(image))
        return outputs.pred_score.numpy(), outputs.anomaly_map.numpy()

    return run


def torch_models(benchmark: Benchmark) -> Iterator[tuple[str, AnomalibModule]]:
    """Train SoftPatch with the backbone in each precision that this processor supports."""
    for precision in ("float32", "bfloat16", "float16"):
        try:
            model = benchmark.soft_patch(precision=precision)
        except ValueError as error:  # noqa: PERF203
            print(f"# {error}")
        else:
            yield precision, model


def size(path: Path) -> float:
    """Return the size of an exported model in MiB."""
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin"))) / 2**20


def main() -> None:
    """Train, export, measure, and print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", default=["SoftPatch", "SoftPatchPlus"])
    arguments.add_argument("--compressions", nargs="+", choices=COMPRESSIONS, default=list(COMPRESSIONS))
    arguments.add_argument("--search", action="store_true", help="also with the search in the memory bank compressed")
    arguments.add_argument("--raw", action="store_true", help="scores without Anomalib's normalization")
    arguments.add_argument("--ratio", type=float, default=0.01, help="coreset_sampling_ratio")
    arguments.add_argument("--max-drop", type=float, default=0.01, help="of the image AUROC, for INT8_ACQ")
    arguments.add_argument("--repeats", type=int, default=100, help="images of which the median time counts")
    options = arguments.parse_args()
    if options.quick:
        options.repeats = 5
    for name in ("anomalib", "lightning.pytorch", "nncf", "timm", "torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    print(describe_machine() + f", openvino {openvino.__version__.split('-')[0]}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, Path(folder))
        build = {"SoftPatch": benchmark.soft_patch, "SoftPatchPlus": benchmark.soft_patch_plus}
        for name in options.models:
            model = build[name]()
            for compression in options.compressions:
                benchmark.export(name, model, compression)
                if options.search and compression.startswith("INT8"):
                    benchmark.export(name, model, compression, search=True)
            benchmark.export(name, model, "FP32", fixed=True)
        benchmark.export("Patchcore", benchmark.patchcore(), "FP32", fixed=True)

        runs = {
            (*key, precision): openvino_runner(path, config, options.threads)
            for key, path in benchmark.files.items()
            for precision, config in PRECISIONS.items()
        }
        milliseconds = benchmark.latencies(runs)
        print("\n| model | compression | MiB | runtime precision | image / map AUROC | ms | against FP32 |")
        print("|---|---|---:|---|---|---:|---:|")
        for key, run in runs.items():
            name, compression, precision = key
            ratio = milliseconds[key] / milliseconds[name, "FP32, fixed size", "f32"]
            print(
                f"| {name} | {compression} | {size(benchmark.files[name, compression]):.1f} | {precision} "
                f"| {benchmark.aurocs(run)} | {milliseconds[key]:.1f} | {ratio:.2f} |",
                flush=True,
            )

        runs = {precision: torch_runner(model) for precision, model in torch_models(benchmark)}
        milliseconds = benchmark.latencies(runs)
        print("\n| SoftPatch in torch, backbone in | image / map AUROC | ms | against float32 |\n|---|---|---:|---:|")
        for precision, run in runs.items():
            ratio = milliseconds[precision] / milliseconds["float32"]
            print(f"| {precision} | {benchmark.aurocs(run)} | {milliseconds[precision]:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
