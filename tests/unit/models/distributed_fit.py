# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Script of test_distributed.py: train and predict on some devices, and save the results of every rank.

Lightning runs a script again for each additional device, so this cannot be a test itself.
"""

import sys
from pathlib import Path

import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_softpatch import NoisyDataModule, SoftPatchPlus


def make(root):
    model = SoftPatchPlus(
        backbone="test_resnet",
        layers=["layer1", "layer2"],
        pre_trained=False,
        coreset_sampling_ratio=0.02,
        visualizer=False,
        pre_processor=SoftPatchPlus.configure_pre_processor((64, 64)),
    )
    model.requires_grad_(False)
    clean = MVTecAD(root=root, category="bottle", train_batch_size=2, eval_batch_size=3, num_workers=0)
    return model, NoisyDataModule(clean, noise_ratio=0.9, overlap=True)


def make_engine(folder, devices, strategy="ddp"):
    return Engine(
        default_root_dir=folder, accelerator="cpu", devices=devices, strategy=strategy if devices > 1 else "auto",
        enable_progress_bar=False, logger=False,
    )  # fmt: skip


def run(root, folder, devices):
    seed_everything(devices, verbose=False)  # the global seed makes no difference
    model, datamodule = make(root)
    engine = make_engine(folder, devices)
    trainable = {}

    def note(stage):
        trainable[stage] = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    engine.fit(model, datamodule=datamodule)
    note("fit")
    first_bank = model.model.memory_bank
    metrics = engine.test(model, datamodule=datamodule, verbose=False)[0]
    note("test")
    batches = engine.predict(model, datamodule=datamodule)
    note("predict")
    engine.fit(model, datamodule=datamodule)
    note("fit again")
    denoising = model.model.denoising
    result = {
        "trainable": trainable,
        "first bank": first_bank,
        "bank": model.model.memory_bank,
        "weights": model.model.weights,
        "radii": model.model.radii,
        "banks": model.model.bank_ranges,
        "scores": None if denoising is None else denoising.scores.fused,
        "keys": None if denoising is None else denoising.keys,
        "metrics": metrics,
        "predictions": {
            path: (score, anomaly_map)
            for batch in batches
            for path, score, anomaly_map in zip(batch.image_path, batch.pred_score, batch.anomaly_map, strict=True)
        },
    }
    torch.save(result, Path(folder, f"rank{engine.trainer.global_rank}-of-{devices}.pt"))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
