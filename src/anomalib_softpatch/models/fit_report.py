# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise report of a fit: collects the findings of the model and the knowledge of the datamodule as plain data."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anomalib_softpatch.components.memory_bank import DenoisingResult
from anomalib_softpatch.data.protocols import KnowsTruth
from anomalib_softpatch.report.fit_report import write_fit_report

if TYPE_CHECKING:
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin

logger = logging.getLogger(__name__)

FOLDER = "noise_report"
AUGMENTED = (
    "The training images were augmented. The report shows the files, so a heat map may be shifted against its image or "
    "mirrored."
)


def report_fit(module: "DenoisingMixin") -> None:
    """Write the report of a fit, and log how well known noise was found."""
    denoising = module.model.denoising
    if denoising is None or denoising.scores is None:
        logger.info("No noise report: with these options the training patches are not scored.")
        return
    datamodule = getattr(module.trainer, "datamodule", None)
    paths, labels, masks = _what_is_known(datamodule, denoising)
    check = module.self_check()
    quality = write_fit_report(
        Path(module.trainer.default_root_dir) / FOLDER,
        paths,
        denoising.scores.fused,
        denoising.kept[0],
        groups=denoising.groups,
        transform=getattr(module.pre_processor, "transform", None),
        labels=labels,
        masks=masks,
        settings={
            "Model": type(module).__name__,
            "Data": " ".join(str(getattr(datamodule, name, "")) for name in ("name", "category")),
            "Layers": ", ".join(module.model.feature_extractor.layers),
            "Discriminators": ", ".join(denoising.scores.by_discriminator),
            "Patches removed": ", ".join(f"{100 * share:.3g} %" for share in denoising.shares),
        },
        notes=[AUGMENTED] if getattr(datamodule, "train_augmentations", None) is not None else [],
        self_check=[] if check is None else check.lines,
        skipped=module.skipped,
    )
    for name, value in quality.items():
        module.log(f"noise_{name}", value, rank_zero_only=True)


def _what_is_known(
    datamodule: object, denoising: DenoisingResult
) -> tuple[list[str], torch.Tensor | None, Iterator[torch.Tensor | None] | None]:
    """Return the paths of the training images, and if the datamodule knows, which are anomalous and where."""
    paths = list(denoising.keys)
    if not isinstance(datamodule, KnowsTruth) or len(paths) != len(denoising.kept[0]):
        return paths, None, None
    truth = datamodule.truth
    path_of = {datamodule.image_key(path): path for path in truth.index}
    paths = [path_of[key] for key in paths]
    labels = torch.tensor(truth.loc[paths, "true_label_index"].to_numpy(dtype=bool))
    masks = (datamodule.true_mask(path) if label else None for path, label in zip(paths, labels.tolist(), strict=True))
    return paths, labels, masks
