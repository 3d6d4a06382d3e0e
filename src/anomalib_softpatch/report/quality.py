# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How well the noise scores find noise that is known."""

import torch
from anomalib.metrics.aupro import _AUPRO as AUPROMetric  # noqa: N811  # the metric without Anomalib's batch wrapper
from torchmetrics.functional.classification import binary_auroc


def detection_quality(
    image_scores: torch.Tensor,
    labels: torch.Tensor,
    patch_scores: torch.Tensor,
    patches: torch.Tensor | None,
) -> dict[str, float]:
    """Compare noise scores with the truth.

    Args:
        image_scores: Score of every image, shape ``(images,)``.
        labels: Which images are anomalous, boolean of shape ``(images,)``.
        patch_scores: Score of every patch, shape ``(images, height, width)``.
        patches: Which patches are anomalous, boolean of the same shape; ``None`` if that is not known.

    Returns:
        In [0, 1], by name: ``image_AUROC`` and ``image_precision`` (share of anomalous ones among as many of the
        highest-scored images as there are anomalous ones); where patches are known ``patch_AUROC``, ``patch_AUPRO``
        (up to a false positive rate of 0.3) and ``patch_precision``. Empty if not both kinds of images are there.
    """
    if labels.all() or not labels.any():
        return {}
    quality = {
        "image_AUROC": binary_auroc(image_scores, labels.long()).item(),
        "image_precision": precision_at_count(image_scores, labels),
    }
    if patches is not None and patches.any():
        # torchmetrics squashes scores outside [0, 1] by a sigmoid, in which the high ones become equal.
        scaled = (patch_scores - patch_scores.min()) / (patch_scores.max() - patch_scores.min()).clamp_min(1e-12)
        # Nothing is asked of other ranks: in a distributed fit, one alone writes the report, with all scores.
        aupro = AUPROMetric(dist_sync_fn=lambda state, group=None: [state])
        aupro.update(scaled, patches)
        quality |= {
            "patch_AUROC": binary_auroc(scaled.flatten(), patches.flatten().long()).item(),
            "patch_AUPRO": aupro.compute().item(),
            "patch_precision": precision_at_count(patch_scores.flatten(), patches.flatten()),
        }
    return quality


def precision_at_count(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the share of true ones among the highest scores, as many of them as there are true ones.

    Args:
        scores: Shape ``(n,)``.
        truth: Boolean of the same shape, true at least once.

    Returns:
        Share in [0, 1].
    """
    return truth[scores.topk(int(truth.sum())).indices].float().mean().item()
