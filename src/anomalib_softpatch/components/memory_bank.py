# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Denoising memory bank: from the features of noisy training images to patches with weights and support radii.

The stages: features -> noise scores -> kept patches -> coreset -> weights and support radii -> bank.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from anomalib.models.components.dimensionality_reduction import SparseRandomProjection

from anomalib_softpatch.components.coreset import k_center_greedy
from anomalib_softpatch.components.discriminators import DISCRIMINATORS
from anomalib_softpatch.components.discriminators.table import check_discriminators
from anomalib_softpatch.components.duplicates import duplicate_groups, representatives
from anomalib_softpatch.components.feature_store import FeatureStore
from anomalib_softpatch.components.patch_scores import PatchScores, projection_matrix, score_patches
from anomalib_softpatch.components.search import MemoryBank
from anomalib_softpatch.components.support_radii import Support, calibrate, find_support, support_of
from anomalib_softpatch.options import (
    CONSTRAINTS,
    CORESET_SAMPLING_RATIO,
    LOF_K,
    MAX_REFERENCES,
    THRESHOLD,
    check,
    check_choice,
)

logger = logging.getLogger(__name__)

# Images that are found to support a patch in addition to those that its radius needs: this many may be set aside later
SPARE_IMAGES = 8


@dataclass(frozen=True, eq=False)
class DenoisingResult(MemoryBank):
    """Result of a fit: a memory bank and how it was made.

    Patches are numbered ``image * height * width + row * width + column``. There is one bank range per threshold.
    All weights are 1 without soft weights. Radii are calibrated; all are 0 with ``min_images=1``.

    Attributes:
        indices: Number of the training patch in each row of the bank, shape ``(m,)``.
        scores: Noise scores of all training patches; ``None`` if no option needs them.
        kept: Patches that each bank kept, boolean, shape ``(banks, images, height, width)``.
        shares: Share of all patches that was to be removed from each bank.
        support: Factors of the distances to the k-th nearest images that give the radii, by k; empty for no radii.
        support_images: Images that support the patches of the bank, more of them than the radii need; ``None`` for no
            radii.
        groups: Number of each image's group of duplicates, see :func:`duplicate_groups`, shape ``(images,)``.
        keys: Keys of the images in their order; empty if any image came without a key.
    """

    radii: torch.Tensor
    indices: torch.Tensor
    scores: PatchScores | None
    kept: torch.Tensor
    shares: tuple[float, ...]
    support: dict[int, float]
    support_images: Support | None
    groups: torch.Tensor
    keys: tuple[str, ...] = ()


@dataclass(eq=False)
class DenoisingMemoryBank:
    """Build memory banks from patch features that contain noise.

    Args:
        discriminators: Names of the noise discriminators. The scores of a single one are used as they are (SoftPatch);
            of several, the mean of their ranks is used (SoftPatch+).
        thresholds: Share of all patches to remove, tau in the papers: one value, or two for two banks.
        soft_weight: Weight the patches of the bank by their noise scores. For a single discriminator, ``True`` gives
            the paper's weight: the local outlier factor itself, or 1 + score for the others. For fused ranks r,
            ``True`` and ``"rank"`` give 1 + r, and ``"lof"`` gives the local outlier factor.

    For the other options see :class:`~anomalib_softpatch.models.SoftPatch`.

    Attributes:
        progress: Whether to show progress bars.

    Raises:
        ValueError: If an argument is out of range.
    """

    discriminators: Sequence[str] = ("lof",)
    thresholds: Sequence[float] = (THRESHOLD,)
    coreset_sampling_ratio: float = CORESET_SAMPLING_RATIO
    soft_weight: bool | Literal["rank", "lof"] = True
    min_images: float | Literal["auto"] = 1
    lof_k: int = LOF_K
    discriminator_options: Mapping[str, Any] | None = None
    neighborhood: int | Literal["image"] = 0
    max_references: int = MAX_REFERENCES
    seed: int = 0
    progress: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.discriminators = tuple(self.discriminators)
        self.thresholds = tuple(self.thresholds)
        self.discriminator_options = dict(self.discriminator_options or {})
        check_discriminators(self.discriminators, self.discriminator_options)
        if len(self.thresholds) not in {1, 2}:
            msg = f"thresholds must be one value, or two for a bank of each task, got {self.thresholds}."
            raise ValueError(msg)
        several = len(self.discriminators) > 1
        weights = {False, True} | ({"rank"} if several else set())
        weights |= {"lof"} if several and "lof" in self.discriminators else set()
        check_choice("soft_weight", self.soft_weight, weights)
        check(**{name: value for name, value in vars(self).items() if name in CONSTRAINTS})

    @property
    def needs_scores(self) -> bool:
        """Whether patches need noise scores: not if none is removed, weighted or given a radius, as in PatchCore."""
        return bool(self.soft_weight) or any(self.thresholds) or self.has_radii

    @property
    def has_radii(self) -> bool:
        """Whether the patches of the bank get support radii."""
        return self.min_images != 1

    def fit(self, features: torch.Tensor | FeatureStore) -> DenoisingResult:
        """Score all patches, remove the noisiest, choose coresets from the others and weight them.

        The state of the global random generators does not change.

        Args:
            features: Shape ``(images, height, width, channels)``, or a store of such features.

        Raises:
            ValueError: If there are no features, or too few images or patches.

        Example:
            >>> result = DenoisingMemoryBank(coreset_sampling_ratio=0.1).fit(torch.randn(20, 16, 16, 64))
            >>> result.features.shape, result.weights.shape
            (torch.Size([512, 64]), torch.Size([512]))
        """
        if isinstance(features, FeatureStore):
            store = features
        else:
            store = FeatureStore()
            store.append(features)
        images, height, width, _ = store.shape
        patches = images * height * width
        if images == 0:
            msg = "There are no features to build a memory bank from: no training image reached the model."
            raise ValueError(msg)
        size = int(patches * self.coreset_sampling_ratio)
        if size < 1:
            msg = (
                f"coreset_sampling_ratio={self.coreset_sampling_ratio} of {patches} patches leaves an empty memory "
                f"bank: use at least {1 / patches:.1e}."
            )
            raise ValueError(msg)
        scores, support, groups = None, {}, torch.arange(images)
        if self.needs_scores:
            matrix = projection_matrix(store.shape[-1], store.device, self.seed)
            projected = store.project(matrix)
            hashes = [sha256(image.cpu().numpy().tobytes()).digest() for image in projected]
            groups = duplicate_groups(hashes, projected, self.progress)
            different = representatives(groups)
            # In the papers every image counts. If all are copies of one image, there is nothing else to compare with.
            once = self.has_radii and 1 < len(different) < images
            if once:
                del projected  # there may not be memory for both
                projected = store.project(matrix, different)
            support = support_of(self.min_images, len(different))
            scores = score_patches(
                projected,
                self.discriminators,
                lof_k=self.lof_k,
                knn_k=max(support, default=1),
                neighborhood=self.neighborhood,
                max_references=self.max_references,
                seed=self.seed,
                options=self.discriminator_options,
                progress=self.progress,
            )
            if once:
                by_name = {name: values[groups] for name, values in scores.by_discriminator.items()}
                scores = PatchScores(scores.fused[groups], by_name)
            del projected  # as large as the features: the next steps need the memory
        if scores is None:
            kept = torch.ones(len(self.thresholds), *store.shape[:3], dtype=torch.bool)
        else:
            kept = torch.stack([keep_mask(scores.fused, threshold) for threshold in self.thresholds])
        with seeded(self.seed):
            indices, bank_ranges = self._select(store, kept, size)
        features = store.rows(indices)
        radii, support_images = torch.zeros(len(indices), device=indices.device), None
        if scores is not None and support:
            wanted = max(support) + SPARE_IMAGES
            found = find_support(store, indices, groups, wanted, self.neighborhood, self.progress)
            scale = calibrate(store, features, indices, groups, found.radii(support), scores.fused)
            support_images = replace(found, scale=scale)
            radii = support_images.radii(support)
        return DenoisingResult(
            features=features,
            weights=self.weigh(scores, indices),
            radii=radii,
            indices=indices,
            bank_ranges=bank_ranges,
            scores=scores,
            kept=kept.cpu(),
            shares=tuple(float(threshold) for threshold in self.thresholds),
            support=support,
            support_images=support_images,
            groups=groups,
            keys=store.keys,
        )

    def _select(
        self, store: FeatureStore, kept: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, tuple[tuple[int, int], ...]]:
        """Choose a coreset for each bank and lay them out so that each bank is one range of rows."""
        device = store.device
        images, height, width, channels = store.shape
        # The random numbers are drawn in the order in which KCenterGreedy draws them, so that equal seeds give equal
        # coresets. Its projection only needs the shape, which an expanded scalar has without the memory.
        projection = SparseRandomProjection(eps=0.9)
        projection.fit(torch.empty(1, device=device).expand(images * height * width, channels))
        projected = store.project(projection.sparse_random_matrix.T.contiguous()).flatten(0, 2)
        coresets: list[torch.Tensor] = []
        masks = kept.flatten(1).to(device)
        for mask in masks:
            if coresets and torch.equal(mask, masks[0]):
                coresets.append(coresets[0])
                continue
            eligible = mask.nonzero().squeeze(1)
            # Drawn by the generator of the CPU, as by KCenterGreedy, so that every device starts from the same patch
            first = eligible[torch.randint(high=len(eligible), size=(1,)).to(device)]
            may_be_chosen = None if mask.all() else mask
            coresets.append(k_center_greedy(projected, min(size, len(eligible)), first, may_be_chosen, self.progress))
        return _overlap_ranges(coresets)

    def weigh(self, scores: PatchScores | None, indices: torch.Tensor) -> torch.Tensor:
        """Return the weights of some patches (SoftPatch, section 3.4).

        Args:
            scores: Noise scores of all patches; if ``None``, all weights are 1.
            indices: Numbers of the patches, shape ``(m,)``.

        Returns:
            Shape ``(m,)``, 0 or more.
        """
        if scores is None or not self.soft_weight:
            return torch.ones(len(indices), device=indices.device)
        values, offset = scores.fused, 1.0
        if self.soft_weight == "lof":
            values, offset = scores.by_discriminator["lof"], 0.0
        elif len(self.discriminators) == 1:
            offset = DISCRIMINATORS[self.discriminators[0]].weight_offset
        return (values.flatten()[indices] + offset).clamp_min(0)


def keep_mask(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return which patches stay when the highest-scoring share of ALL patches is removed (SoftPatch, section 3.3).

    Patches that tie with the last one that stays also stay, so that at least one always does.

    Args:
        scores: Noise scores of any shape.
        threshold: Share to remove, tau in the paper, in [0, 1).

    Returns:
        Boolean, of the shape of the scores.
    """
    if threshold == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    kept = max(1, scores.numel() - int(threshold * scores.numel()))
    return scores <= scores.flatten().kthvalue(kept).values


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a block, and restore their state afterward.

    Anomalib's random projection draws from NumPy's global generator and PatchCore's first center from PyTorch's.
    """
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # explicit: otherwise several devices give a warning
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _overlap_ranges(coresets: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[tuple[int, int], ...]]:
    """Lay out one or two coresets so that each is one range of rows and shared patches are stored once."""
    if len(coresets) == 1:
        return coresets[0], ((0, len(coresets[0])),)
    # A coreset repeats a row once all eligible ones coincide with centers
    first, second = (each[representatives(each).sort().values.to(each.device)] for each in coresets)
    shared = torch.isin(first, second)
    indices = torch.cat((first[~shared], first[shared], second[~torch.isin(second, first)]))
    return indices, ((0, len(first)), (len(first) - int(shared.sum()), len(indices)))
