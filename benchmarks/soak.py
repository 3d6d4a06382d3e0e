# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Soak test: many fits and predictions in one process do not increase its memory.

The test uses small random images and an untrained resnet18, with SoftPatch and SoftPatch+ in turn. Every tenth fit uses
Anomalib's engine, with noise report, validation and checkpoint. The others fit the torch model, half of them with
features on disk. After each fit, images are predicted, by new models and by one that is fitted again and again. The
resident memory is measured after a warm-up of a quarter of the fits, and at the end. The exit status is 1 if it grew by
more than ``--bound`` MiB.

Example::

    python benchmarks/soak.py
"""

import argparse
import gc
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.models import SoftPatchModel
from common import describe_machine

SIZE = 64
PLUS = {"discriminators": ("lof", "gaussian"), "thresholds": (0.15, 0.5)}
BACKBONE = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "pre_trained": False}


def resident() -> float:
    """Return the resident memory of this process in MiB, after a garbage collection."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def write_images(root: Path) -> None:
    """Write random images, some normal and some with a black square."""
    rng = np.random.default_rng(0)
    for folder, count in (("good", 8), ("bad", 4)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(100, 156, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[16:40, 24:48] *= folder == "good"
            Image.fromarray(pixels).save(root / folder / f"{number}.png")


def fit_with_engine(images: Path, number: int) -> None:
    """Train, test and drop a Lightning module."""
    model_class = (SoftPatch, SoftPatchPlus)[number % 2]
    model = model_class(
        **BACKBONE,
        coreset_sampling_ratio=0.05,
        pre_processor=SoftPatch.configure_pre_processor((SIZE, SIZE)),
        visualizer=False,
    )
    data = Folder("soak", root=images, normal_dir="good", abnormal_dir="bad", num_workers=0, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        engine.fit(model, datamodule=data)
        engine.predict(model, datamodule=data)


def fit(model: SoftPatchModel, images: torch.Tensor) -> None:
    """Fit a torch model."""
    model.train()
    for batch in images.split(4):
        model(batch)
    model.fit()
    model.eval()


def main() -> int:
    """Fit, predict, and compare the memory."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--fits", type=int, default=200)
    arguments.add_argument("--predictions", type=int, default=5000)
    arguments.add_argument("--bound", type=float, default=50, help="MiB that the memory may grow by")
    arguments.add_argument("--quick", action="store_true", help="24 fits and 240 predictions")
    options = arguments.parse_args()
    if options.quick:
        options.fits, options.predictions = 24, 240
    for name in ("anomalib", "anomalib_softpatch", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)

    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    builder = DenoisingMemoryBank(**PLUS, coreset_sampling_ratio=0.5)
    kept = SoftPatchModel(**BACKBONE, memory_bank_builder=builder)
    predictions, warm, after_warm_up = 0, options.fits // 4, 0.0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        image_folder = Path(folder)
        write_images(image_folder)
        for number in range(options.fits):
            if number == warm:
                after_warm_up = resident()
            if number % 10 == 0:
                fit_with_engine(image_folder, number // 10)
                model = kept
            elif number % 2:
                model = kept  # again, with another bank
                fit(model, images)
            else:
                builder = DenoisingMemoryBank(coreset_sampling_ratio=0.5)
                model = SoftPatchModel(**BACKBONE, memory_bank_builder=builder, memory_budget=0)
                fit(model, images)
            with torch.inference_mode():
                while model.bank_ranges and predictions * options.fits < options.predictions * (number + 1):
                    model(images[predictions % len(images)][None])
                    predictions += 1
            if (number + 1) % max(1, options.fits // 10) == 0:
                print(f"{number + 1:5} fits {predictions:6} predictions {resident():8.0f} MiB", flush=True)
    del model
    grown = resident() - after_warm_up
    print(
        f"{options.fits} fits and {predictions} predictions in {time.perf_counter() - started:.0f} s: {grown:+.1f} MiB "
        f"since the first {warm} fits ({after_warm_up:.0f} MiB), allowed are {options.bound:g}"
    )
    return int(grown > options.bound)


if __name__ == "__main__":
    sys.exit(main())
