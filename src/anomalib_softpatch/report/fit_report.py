# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise report of a fit, from plain data, without a model or datamodule."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torchvision.transforms.v2 import Transform

from anomalib_softpatch.images.reading import image_size
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.geometry import Region, true_patches, visible_region
from anomalib_softpatch.report.writer import write_report

logger = logging.getLogger(__name__)


def write_fit_report(
    folder: str | Path,
    paths: Sequence[str],
    scores: torch.Tensor,
    kept: torch.Tensor,
    *,
    transform: Transform | None = None,
    groups: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    masks: Iterable[torch.Tensor | None] | None = None,
    settings: dict[str, str] | None = None,
    notes: Sequence[str] = (),
    self_check: Sequence[str] = (),
    skipped: Sequence[tuple[str, str]] = (),
) -> dict[str, float]:
    """Write the noise report of a fit, and return how well the known noise was found.

    A trained model is worth more than its report: any error here becomes a warning that names the cause.

    Arguments that are not explained here are those of :class:`~anomalib_softpatch.report.findings.Findings`. The
    pre-processor's ``transform`` determines which part of an image the patches cover. ``masks`` yields one mask per
    image, in the image's own size, or ``None`` for an image without an anomaly. The quality of the patch scores is
    measured if all anomalous images have a mask.

    Returns:
        See :func:`~anomalib_softpatch.report.quality.detection_quality`, and how many images must be looked at to find
        50, 90 and 100 % of the noise, as ``images_to_find_50`` and so on; empty if nothing is known or if the report
        could not be written.
    """
    try:
        if len(paths) != len(scores):
            msg = f"Some of the {len(scores)} training images that reached the model have no path."
            raise ValueError(msg)  # noqa: TRY301
        regions = [visible_region(transform, image_size(path)) for path in paths]
        grid_size = (scores.shape[1], scores.shape[2])
        findings = Findings(
            paths=list(paths),
            scores=scores.detach().float().cpu(),
            kept=kept.cpu(),
            regions=regions,
            groups=groups,
            labels=labels,
            true_patches=None if masks is None or labels is None else _patches(labels, masks, regions, grid_size),
            settings=settings or {},
            notes=list(notes),
            self_check=list(self_check),
            skipped=list(skipped),
        )
        page = write_report(findings, folder)
        quality = findings.quality | {
            f"images_to_find_{100 * share:.0f}": float(count) for share, count in findings.inspection.items()
        }
    except Exception as error:
        unexpected = not isinstance(error, OSError)  # a full disk needs no traceback
        logger.warning(
            "The noise report could not be written: %s: %s", type(error).__name__, error, exc_info=unexpected
        )
        return {}
    logger.info("Noise report: %s", page)
    return quality


def _patches(
    labels: torch.Tensor, masks: Iterable[torch.Tensor | None], regions: Sequence[Region], grid_size: tuple[int, int]
) -> torch.Tensor | None:
    """Tell which patches are anomalous; ``None`` if an anomalous image has no mask."""
    patches = []
    for label, mask, region in zip(labels.tolist(), masks, regions, strict=True):
        if label and mask is None:
            return None
        patches.append(true_patches(mask, region, grid_size))
    return torch.stack(patches)
