# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Distance of every training patch to an ensemble of small memory banks, which repeated defects cannot outvote."""

import torch

from anomalib_softpatch.components.references import References, squares_to_others
from anomalib_softpatch.components.smoothing import smooth

# Images in a bank of the ensemble, and banks at least. A patch is supported by the median bank if one image in about 23
# (0.7 of 16) shows the like: copies in fewer than half of the banks do not vouch for it.
IMAGES_PER_BANK = 16
FEWEST_BANKS = 8
# Typical distances are at least this share of the mean distance: where all images are equal at a position, as in black
# corners, a grey level makes no outlier.
SMALLEST_DISTANCE = 1e-3


def ensemble(features: torch.Tensor, references: References, k: int = 1) -> torch.Tensor:
    """Score patches by the median, over small disjoint banks of the training images, of the distance to each bank.

    A local outlier factor asks whether a patch has k others like itself, so that a defect is normal once it was seen
    more than k times. Here each bank holds the patches of some images only: of a defect that is in less than half of
    the banks, the median says how far it is from what all the others show. Smoothed over the grid, it is divided by the
    median over the images at that position: else the patches removed would be those of the positions that vary most,
    all of them.

    Out-of-bag ensembles are how MeDS (ICML 2026) and CleanCon (2026) select images; here they score patches.

    Args:
        features: Shape ``(images, height, width, dimensions)``.
        references: Which patches are compared.
        k: Not used: every discriminator takes the same arguments.

    Returns:
        Shape ``(images, height, width)``.
    """
    del k
    images, height, width, dimensions = features.shape
    patches = height * width
    bank_of = bank_numbers(images, references.seed).to(features.device)
    flat = features.reshape(-1, dimensions)
    scores = flat.new_empty(len(flat))
    cost = max(2 * references.count(images, (height, width)), 2 * dimensions)
    for scored, compared in references.blocks(features, cost):
        # The images of the references are the same for all groups, so that one order brings the banks together.
        banks, order = bank_of[compared[0] // patches].sort(stable=True)
        ordered = compared[:, order]
        squares = squares_to_others(features, scored, ordered)
        sizes = [size for size in banks.bincount().tolist() if size]
        nearest, places = zip(*(part.min(dim=2) for part in squares.split(sizes, dim=2)), strict=True)
        starts = torch.tensor([0, *sizes[:-1]], device=features.device).cumsum(dim=0)
        place = (torch.stack(places, dim=2) + starts).gather(2, _median_place(torch.stack(nearest, dim=2)))
        # The expanded squares have only found the neighbour: its distance keeps its digits, down to zero for copies.
        neighbor = ordered.gather(1, place.squeeze(2))
        scores[scored] = torch.linalg.norm(flat[scored] - flat[neighbor], dim=2)
    distances = smooth(scores.view(images, height, width))
    typical = distances.median(dim=0).values
    smallest = SMALLEST_DISTANCE * distances.mean() + torch.finfo(typical.dtype).tiny
    return distances / typical.clamp_min(smallest)


def bank_numbers(images: int, seed: int) -> torch.Tensor:
    """Deal the images out to the banks of the ensemble.

    Args:
        images: Number of images.
        seed: Seed of the choice.

    Returns:
        Number of each image's bank, shape ``(images,)``; banks differ by one image at most.
    """
    banks = min(images, max(-(-images // IMAGES_PER_BANK), FEWEST_BANKS))
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    numbers = torch.empty(images, dtype=torch.long)
    numbers[order] = torch.arange(images) % banks
    return numbers


def _median_place(values: torch.Tensor) -> torch.Tensor:
    """Return where along the last dimension the lower median of the finite values is, keeping that dimension.

    A bank that holds nothing but the patch's own image has no distance to offer.
    """
    order = values.argsort(dim=-1, stable=True)
    count = values.isfinite().sum(dim=-1, keepdim=True)
    return order.gather(-1, ((count - 1) // 2).clamp_min(0))
