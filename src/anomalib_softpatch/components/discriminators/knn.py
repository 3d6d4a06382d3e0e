# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distance of every training patch to the k-th nearest image."""

import torch

from anomalib_softpatch.components.discriminators.table import discriminator
from anomalib_softpatch.components.references import References, squares_to_others
from anomalib_softpatch.options import whole_number


@discriminator(weight_offset=1.0, knn_k=whole_number(1))
def knn(features: torch.Tensor, references: References, knn_k: int = 2) -> torch.Tensor:
    """Score patches by their distance to the k-th nearest other image (not in the papers).

    Each image counts once, by its nearest patch, so that a defect that covers several patches of an image does not
    support itself. It is the outlier score of Ramaswamy, Rastogi and Shim (SIGMOD 2000) with one neighbor per image,
    and the support radius of :mod:`anomalib_softpatch.components.support_radii`.

    Args:
        features: Shape ``(images, height, width, dimensions)``.
        references: Which patches are compared.
        knn_k: k; if there are fewer other images, the farthest one counts.

    Returns:
        Shape ``(images, height, width)``.
    """
    images, height, width, dimensions = features.shape
    patches = height * width
    flat = features.reshape(-1, dimensions)
    distances = flat.new_empty(len(flat))
    cost = max(2 * references.count(images, (height, width)), 2 * dimensions)
    for scored, compared in references.blocks(features, cost):
        # The images of the references are the same for all groups, and in order
        _, sizes = (compared[0] // patches).unique_consecutive(return_counts=True)
        squares = squares_to_others(features, scored, compared)
        if bool((sizes == sizes[0]).all()):
            of_images = squares.unflatten(2, (len(sizes), -1)).amin(dim=3)
        else:
            of_images = torch.stack([part.amin(dim=2) for part in squares.split(sizes.tolist(), dim=2)], dim=2)
        image = of_images.topk(min(knn_k, len(sizes) - 1), dim=2, largest=False).indices[:, :, -1]
        # Find the nearest patch of this image only: for all images it would take as long as the distances
        starts = sizes.cumsum(dim=0) - sizes
        offsets = torch.arange(int(sizes.max()), device=sizes.device)
        candidates = (starts[image][:, :, None] + offsets).clamp_max(compared.shape[1] - 1)
        of_image = squares.gather(2, candidates).masked_fill_(offsets >= sizes[image][:, :, None], torch.inf)
        place = starts[image] + of_image.argmin(dim=2)
        # Expanded squares only find the patch. Its distance is computed from differences: exact, 0 for copies
        distances[scored] = torch.linalg.vector_norm(flat[scored] - flat[compared.gather(1, place)], dim=2)
    return distances.view(images, height, width)
