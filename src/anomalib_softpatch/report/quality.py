# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How well the noise scores find noise that is known."""

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.functional.retrieval import retrieval_r_precision

# Shares of the noise that the inspection curve is read at
FOUND_SHARES = (0.5, 0.9, 1.0)


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
        In [0, 1], by name: ``image_AUROC``, ``image_AP`` (average precision) and ``image_precision`` (share of
        anomalous ones among as many of the highest-scored images as there are anomalous ones); where patches are known
        ``patch_AUROC``, ``patch_AUPRO`` (up to a false positive rate of 0.3) and ``patch_precision``. Empty if not
        both kinds of images are there.
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
    """Number the different scores upwards, in [0, 1]: torchmetrics squashes others, so that high ones become equal."""
    values, inverse = scores.unique(return_inverse=True)
    return inverse.float() / max(1, len(values) - 1)


def _aupro(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return Anomalib's area under the per-region overlap curve of scores in [0, 1]."""
    from anomalib.data import ImageBatch  # noqa: PLC0415  # needed where the truth is known only
    from anomalib.metrics import AUPRO  # noqa: PLC0415

    # Nothing is asked of other ranks: in a distributed fit, one alone writes the report, with all scores.
    metric = AUPRO(fields=("anomaly_map", "gt_mask"), dist_sync_fn=lambda state, group=None: [state])
    images = torch.zeros(len(scores), 3, *scores.shape[1:])  # a batch has some
    metric.update(ImageBatch(image=images, anomaly_map=scores, gt_mask=truth))
    return metric.compute().item()


def inspection_curve(ordered_labels: torch.Tensor) -> torch.Tensor:
    """Return the share of the anomalous images among the first 1, 2, ... images, shape ``(images,)``.

    Args:
        ordered_labels: Which images are anomalous, the most suspicious first, boolean of shape ``(images,)``, true at
            least once.
    """
    return ordered_labels.double().cumsum(dim=0) / ordered_labels.sum()


def images_to_inspect(ordered_labels: torch.Tensor, share: float) -> int:
    """Return how many images must be looked at, in order, to find a share above 0 of the anomalous ones.

    Args:
        ordered_labels: See :func:`inspection_curve`.
        share: Share to be found, at most 1.
    """
    # Counted in whole images, which sums of floating-point shares are not.
    wanted = int(np.ceil(share * int(ordered_labels.sum()) - 1e-9))
    return int(torch.searchsorted(ordered_labels.long().cumsum(dim=0), wanted)) + 1
