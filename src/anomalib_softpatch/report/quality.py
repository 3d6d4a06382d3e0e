# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How well the noise scores find known noise."""

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.functional.retrieval import retrieval_r_precision

FOUND_SHARES = (0.5, 0.9, 1.0)  # shares of the noise at which the inspection curve is read


def detection_quality(
    image_scores: torch.Tensor,
    labels: torch.Tensor,
    patch_scores: torch.Tensor,
    patches: torch.Tensor | None,
) -> dict[str, float]:
    """Compare noise scores with the truth.

    Args:
        image_scores: Score of each image, shape ``(images,)``.
        labels: Which images are anomalous, boolean of shape ``(images,)``.
        patch_scores: Score of each patch, shape ``(images, height, width)``.
        patches: Which patches are anomalous, boolean of the same shape; ``None`` if unknown.

    Returns:
        Measures in [0, 1] by name: ``image_AUROC``, ``image_AP`` (average precision) and ``image_precision`` (with n
        anomalous images, their share among the n images with the highest scores). If anomalous patches are known, also
        ``patch_AUROC``, ``patch_AUPRO`` (up to a false positive rate of 0.3) and ``patch_precision``. Empty if there
        are only normal or only anomalous images.
    """
    if labels.all() or not labels.any():
        return {}
    ordered = _dense_ranks(image_scores)
    quality = {
        "image_AUROC": binary_auroc(ordered, labels.long()).item(),
        "image_AP": binary_average_precision(ordered, labels.long()).item(),
        "image_precision": retrieval_r_precision(image_scores, labels).item(),
    }
    if patches is not None and patches.any():
        ordered = _dense_ranks(patch_scores)
        quality |= {
            "patch_AUROC": binary_auroc(ordered.flatten(), patches.flatten().long()).item(),
            "patch_AUPRO": _aupro(ordered, patches),
            "patch_precision": retrieval_r_precision(patch_scores.flatten(), patches.flatten()).item(),
        }
    return quality


def _dense_ranks(scores: torch.Tensor) -> torch.Tensor:
    """Number the distinct scores in [0, 1]: torchmetrics applies a sigmoid to others, which makes high ones equal."""
    values, inverse = scores.unique(return_inverse=True)
    return inverse.float() / max(1, len(values) - 1)


def _aupro(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return Anomalib's area under the per-region overlap curve of scores in [0, 1]."""
    from anomalib.data import ImageBatch  # noqa: PLC0415  # needed only if the truth is known
    from anomalib.metrics import AUPRO  # noqa: PLC0415

    # No synchronization: in a distributed fit, only one rank writes the report, and it has all scores.
    metric = AUPRO(fields=("anomaly_map", "gt_mask"), dist_sync_fn=lambda state, group=None: [state])
    images = torch.zeros(len(scores), 3, *scores.shape[1:])  # a batch must have images
    metric.update(ImageBatch(image=images, anomaly_map=scores, gt_mask=truth))
    return metric.compute().item()


def inspection_curve(ordered_labels: torch.Tensor) -> torch.Tensor:
    """Return the share of the anomalous images among the first 1, 2, ... images, shape ``(images,)``.

    Args:
        ordered_labels: Which images are anomalous, the most suspicious first, boolean of shape ``(images,)``; at least
            one is.
    """
    return ordered_labels.double().cumsum(dim=0) / ordered_labels.sum()


def images_to_inspect(ordered_labels: torch.Tensor, share: float) -> int:
    """Return how many images must be looked at, in order, to find a share above 0 of the anomalous ones.

    Args:
        ordered_labels: See :func:`inspection_curve`.
        share: Share to be found, at most 1.
    """
    # Whole images are counted, because sums of floating-point shares are inexact.
    wanted = int(np.ceil(share * int(ordered_labels.sum()) - 1e-9))
    return int(torch.searchsorted(ordered_labels.long().cumsum(dim=0), wanted)) + 1
