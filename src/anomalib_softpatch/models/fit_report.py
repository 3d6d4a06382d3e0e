# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise report of a fit."""

import logging
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from anomalib_softpatch.components import DenoisingResult
from anomalib_softpatch.data import NoisyDataModule
from anomalib_softpatch.report.findings import Findings, image_size
from anomalib_softpatch.report.geometry import true_patches, visible_region

logger = logging.getLogger(__name__)

FOLDER = "noise_report"


def report_fit(module: LightningModule) -> None:
    """Write ``noise_report/`` into the results folder and log how well known noise was found.

    A trained model is worth more than its report: whatever goes wrong here is a warning that names the cause.

    Args:
        module: Module that was fitted, in a hook that allows logging.
    """
    denoising = module.model.denoising
    if denoising is None or denoising.scores is None:
        logger.info("No noise report: with these options the training patches are not scored.")
        return
    try:
        from anomalib_softpatch.report.writer import write_report  # noqa: PLC0415  # drawing libraries, when needed

        findings = find(module, denoising)
        report = write_report(findings, Path(module.trainer.default_root_dir) / FOLDER)
    except Exception as error:
        logger.warning("The noise report could not be written: %s: %s", type(error).__name__, error, exc_info=True)
        return
    logger.info("Noise report: %s", report)
    for name, value in findings.quality.items():
        module.log(f"noise_{name}", value, rank_zero_only=True)


def find(module: LightningModule, denoising: DenoisingResult) -> Findings:
    """Gather what there is to report about a fit.

    Args:
        module: Module that was fitted.
        denoising: What the fit found.

    Returns:
        Findings, with the truth where the datamodule knows it.

    Raises:
        ValueError: If some of the images came without a path.
    """
    scores = denoising.scores.fused.detach().float().cpu()
    if len(denoising.keys) != len(scores):
        msg = f"Not all of the {len(scores)} training images that reached the model had a path."
        raise ValueError(msg)
    datamodule = getattr(module.trainer, "datamodule", None)
    paths = list(denoising.keys)
    if isinstance(datamodule, NoisyDataModule):
        path_of = {datamodule.image_key(path): path for path in datamodule.truth.index}
        paths = [path_of[key] for key in denoising.keys]
    transform = getattr(module.pre_processor, "transform", None)
    regions = [visible_region(transform, image_size(path)) for path in paths]
    labels, patches = _truth(datamodule, paths, regions, tuple(scores.shape[1:]))
    builder = module.model.memory_bank_builder
    return Findings(
        paths=paths,
        scores=scores,
        kept=denoising.kept[0].cpu(),
        regions=regions,
        labels=labels,
        true_patches=patches,
        settings={
            "Model": type(module).__name__,
            "Data": " ".join(str(getattr(datamodule, name, "")) for name in ("name", "category")),
            "Layers": ", ".join(module.model.feature_extractor.layers),
            "Discriminators": ", ".join(builder.discriminators),
            "Patches removed": ", ".join(f"{100 * threshold:g} %" for threshold in builder.thresholds),
        },
        notes=_notes(datamodule),
    )


def _truth(
    datamodule: LightningDataModule | None, paths: list[str], regions: list, grid_size: tuple[int, int]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Look up which images and patches are anomalous, where the datamodule has injected them."""
    if not isinstance(datamodule, NoisyDataModule):
        return None, None
    labels = torch.tensor(datamodule.truth.loc[paths, "true_label_index"].to_numpy(dtype=bool))
    masks = [datamodule.true_mask(path) if label else None for path, label in zip(paths, labels.tolist(), strict=True)]
    if any(mask is None for mask, label in zip(masks, labels.tolist(), strict=True) if label):
        return labels, None  # a set without masks
    return labels, torch.stack(
        [true_patches(mask, region, grid_size) for mask, region in zip(masks, regions, strict=True)]
    )


def _notes(datamodule: LightningDataModule | None) -> list[str]:
    notes = []
    if getattr(datamodule, "train_augmentations", None) is not None:
        notes.append(
            "The training images were augmented. What is shown are the files, so a heat map may be displaced "
            "against its image, or mirrored."
        )
    return notes
