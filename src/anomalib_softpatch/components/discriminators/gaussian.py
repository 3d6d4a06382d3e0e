# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Mahalanobis distance of every training patch to a Gaussian fitted to its position."""

import torch

from anomalib_softpatch.components.discriminators.table import discriminator
from anomalib_softpatch.components.references import References

REGULARIZATION = 0.01  # added to the diagonal of the covariance: SoftPatch, section 3.2, as in PaDiM
SMALLEST_SHARE = 1e-12  # share of the variance of all dimensions that is also added: matters for variances above 1e9


@discriminator(weight_offset=1.0)
def gaussian(features: torch.Tensor, references: References) -> torch.Tensor:
    """Score patches by the Mahalanobis distance to a multivariate Gaussian of the patches they are compared with.

    The patch itself is included in the Gaussian, as in the paper. For arguments and shapes see
    :class:`~anomalib_softpatch.components.discriminators.table.Discriminator`.
    """
    images, height, width, dimensions = features.shape
    flat = features.reshape(-1, dimensions)
    scores = flat.new_empty(len(flat))
    # With fewer images than dimensions, only the regularization keeps the covariance regular. It would be lost to
    # rounding next to large variances in float32, and next to huge ones in float64.
    references_per_image = -(-references.count(images, (height, width)) // images)
    cost = 2 * dimensions * (2 + references_per_image + -(-dimensions // images))
    for scored, compared in references.blocks(features, cost):
        reference = flat[compared].double()
        mean = reference.mean(dim=1, keepdim=True)
        reference = reference - mean
        covariance = reference.mT @ reference / (reference.shape[1] - 1)
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        variances += REGULARIZATION + SMALLEST_SHARE * variances.sum(dim=1, keepdim=True)
        factor = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(factor, (flat[scored] - mean).mT, upper=False)
        scores[scored] = torch.linalg.norm(whitened, dim=1).to(scores.dtype)
    return scores.view(images, height, width)
