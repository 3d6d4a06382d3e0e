# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Denoising memory bank: from the features of noisy training images to patches and weights to compare with.

The stages, each a module of its own: features -> discriminator scores -> kept patches and weights -> coreset -> bank.

Example:
    >>> import torch
    >>> from anomalib_softpatch.components import DenoisingMemoryBank
    >>> features = torch.randn(20, 16 * 16, 64)
    >>> bank = DenoisingMemoryBank(coreset_sampling_ratio=0.1).fit(features, grid_size=(16, 16))
    >>> bank.features.shape, bank.weights.shape
    (torch.Size([512, 64]), torch.Size([512]))
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from anomalib.models.components.dimensionality_reduction import SparseRandomProjection

from anomalib_softpatch.components import distributed
from anomalib_softpatch.components.comparison import Comparison
from anomalib_softpatch.components.coreset import k_center_greedy
from anomalib_softpatch.components.discriminators import DISCRIMINATORS, noise_scores, projection_matrix
from anomalib_softpatch.components.feature_store import FeatureStore
from anomalib_softpatch.components.threshold import fuse, keep_mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryBank:
    """What a fit gives. Patches are numbered ``image * patches + position``, images as the feature store does.

    Attributes:
        features: Patches of all banks, each stored once, shape ``(m, channels)``.
        weights: Weight of each of them, shape ``(m,)``; ones without soft weights.
        indices: Which training patch each of them is, shape ``(m,)``.
        banks: Rows that belong to each bank as ``(start, stop)``, one per threshold.
        scores: Noise score of every training patch, fused if there are several discriminators, shape
            ``(images, height, width)``; ``None`` if nothing asked for scores.
        discriminator_scores: Scores of each discriminator, same shape.
        kept: Patches that each bank kept, boolean, shape ``(banks, images, height, width)``.
        keys: Keys of the images in their order; empty if some came without.
    """

    features: torch.Tensor
    weights: torch.Tensor
    indices: torch.Tensor
    banks: tuple[tuple[int, int], ...]
    scores: torch.Tensor | None
    discriminator_scores: dict[str, torch.Tensor]
    kept: torch.Tensor
    keys: tuple[str, ...] = ()


class DenoisingMemoryBank:
    """Build memory banks from patch features that contain noise.

    Args:
        discriminators: Names of the noise discriminators. One: its scores are used as they are (SoftPatch). Several:
            the mean of their ranks (SoftPatch+).
        thresholds: Share of all patches to remove, tau in the papers: one value, or two for two banks.
        coreset_sampling_ratio: Size of each bank as a share of ALL patches, the removed ones included.
        soft_weight: Weigh the patches of the bank by their noise scores. For a single discriminator: ``True`` for the
            paper's weight (the local outlier factor as it is, 1 + score for the others). For fused ranks r: ``"rank"``
            for 1 + r; ``"lof"`` for the local outlier factor; ``True`` for the default of SoftPatch+, see there.
        lof_k: Neighbours of the local outlier factor, k in the papers.
        neighborhood: Which grid positions patches are compared with, see :class:`Comparison`.
        max_references: Most patches that each patch is compared with, see :class:`Comparison`.
        progress: Show progress bars.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        discriminators: Sequence[str] = ("lof",),
        thresholds: Sequence[float] = (0.15,),
        coreset_sampling_ratio: float = 0.1,
        soft_weight: bool | Literal["rank", "lof"] = True,
        lof_k: int = 6,
        neighborhood: int | Literal["image"] = 0,
        max_references: int = 4096,
        progress: bool = True,
    ) -> None:
        self.discriminators = tuple(discriminators)
        self.thresholds = tuple(thresholds)
        self.coreset_sampling_ratio = coreset_sampling_ratio
        self.soft_weight = soft_weight
        self.lof_k = lof_k
        self.neighborhood = neighborhood
        self.max_references = max_references
        self.progress = progress
        self._validate()

    def _validate(self) -> None:
        for name in self.discriminators:
            if name not in DISCRIMINATORS:
                msg = f"Unknown discriminator '{name}': choose from {', '.join(DISCRIMINATORS)}."
                raise ValueError(msg)
        if not self.discriminators or len(set(self.discriminators)) < len(self.discriminators):
            msg = f"discriminators must be different names and at least one, got {self.discriminators}."
            raise ValueError(msg)
        if len(self.thresholds) not in {1, 2}:
            msg = f"thresholds must be one value, or two for a bank of each task, got {self.thresholds}."
            raise ValueError(msg)
        for threshold in self.thresholds:
            if not 0 <= threshold < 1:
                msg = f"threshold must be at least 0 and below 1 (a share of the patches), got {threshold}."
                raise ValueError(msg)
        if not 0 < self.coreset_sampling_ratio <= 1:
            msg = f"coreset_sampling_ratio must be above 0 and at most 1, got {self.coreset_sampling_ratio}."
            raise ValueError(msg)
        if self.lof_k < 1:
            msg = f"lof_k must be at least 1, got {self.lof_k}."
            raise ValueError(msg)
        if self.neighborhood != "image" and (isinstance(self.neighborhood, str) or self.neighborhood < 0):
            msg = f"neighborhood must be 'image' or a radius of at least 0 positions, got {self.neighborhood!r}."
            raise ValueError(msg)
        allowed = {False, True} if len(self.discriminators) == 1 else {False, True, "rank"}
        if len(self.discriminators) > 1 and "lof" in self.discriminators:
            allowed.add("lof")
        if self.soft_weight not in allowed:
            choices = sorted(allowed, key=str)
            msg = f"soft_weight for {self.discriminators} must be one of {choices}, got {self.soft_weight!r}."
            raise ValueError(msg)
        if self.max_references < 1:
            msg = f"max_references must be at least 1, got {self.max_references}."
            raise ValueError(msg)

    @property
    def needs_scores(self) -> bool:
        """Whether patches have to be scored: not if none is removed and none is weighed, which is PatchCore."""
        return bool(self.soft_weight) or any(self.thresholds)

    def fit(self, features: torch.Tensor | FeatureStore, grid_size: tuple[int, int]) -> MemoryBank:
        """Score all patches, remove the noisiest, choose coresets of the rest and weigh them.

        Where ``torch.distributed`` is initialized, all ranks call this, each with the features of its images. What
        they get is the same on all of them and what one process would make of all images with rank 0's generators.

        Args:
            features: Shape ``(images, patches, channels)``, or a store of such.
            grid_size: Height and width of the grid of patches of each image.

        Returns:
            The banks and how they came about.

        Raises:
            ValueError: If there are no features, too few images or patches, or the grid does not fit.
        """
        store = features if isinstance(features, FeatureStore) else _as_store(features)
        images, patches, _ = store.numbering().shape
        grid_size = max(distributed.all_gather_object(tuple(grid_size)))  # a rank without images does not know it
        height, width = grid_size
        if images == 0:
            msg = "There are no features to build a memory bank from: no training image reached the model."
            raise ValueError(msg)
        if height * width != patches:
            msg = f"grid_size {height} x {width} does not fit features of {patches} patches."
            raise ValueError(msg)
        size = int(images * patches * self.coreset_sampling_ratio)
        if size < 1:
            msg = (
                f"coreset_sampling_ratio={self.coreset_sampling_ratio} of {images * patches} patches leaves an "
                f"empty memory bank: use at least {1 / (images * patches):.1e}."
            )
            raise ValueError(msg)

        discriminator_scores = self._score(store, grid_size) if self.needs_scores else {}
        scores = _combine(list(discriminator_scores.values()))
        kept = torch.stack([self._keep(scores, threshold, (images, height, width)) for threshold in self.thresholds])
        indices, banks = self._select(store, kept, size)
        weights = self.weigh(scores, discriminator_scores, indices)
        return MemoryBank(
            features=store.rows(indices),
            weights=weights,
            indices=indices,
            banks=banks,
            scores=scores,
            discriminator_scores=discriminator_scores,
            kept=kept.cpu(),
            keys=store.numbering().keys,
        )

    def _score(self, store: FeatureStore, grid_size: tuple[int, int]) -> dict[str, torch.Tensor]:
        # Patches of all images are compared, so each rank scores some of the positions, of all images.
        ranks = distributed.world_size()
        comparisons = [
            Comparison(grid_size, self.neighborhood, self.max_references, share=(rank, ranks)) for rank in range(ranks)
        ]
        images, patches, channels = store.numbering().shape
        projected = store.project_all(
            projection_matrix(channels, store.device), [comparison.held_positions for comparison in comparisons]
        )
        comparison = comparisons[distributed.rank()]
        scores = {}
        for name in self.discriminators:
            logger.info("Scoring %d patches: %s", images * patches, name)
            scores[name] = noise_scores(projected, name, comparison, self.lof_k).view(-1, *grid_size)
        return scores

    @staticmethod
    def _keep(scores: torch.Tensor | None, threshold: float, shape: tuple[int, int, int]) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.bool) if scores is None else keep_mask(scores, threshold)

    def _select(
        self, store: FeatureStore, kept: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, tuple[tuple[int, int], ...]]:
        """Choose a coreset for each bank and lay them out so that each bank is one range of rows."""
        images, patches, channels = store.numbering().shape
        device = store.device
        # The random numbers are drawn in the order in which KCenterGreedy draws them, so that equal seeds give equal
        # coresets. Its projection only asks for the shape, which an expanded scalar has without the memory.
        projection = SparseRandomProjection(eps=0.9)
        projection.fit(torch.empty(1, device=device).expand(images * patches, channels))
        matrix = distributed.broadcast(projection.sparse_random_matrix.T.contiguous())
        projected = store.project(matrix).flatten(0, 1)
        numbers = store.numbering().numbers[distributed.rank()].to(device)
        numbers = (numbers[:, None] * patches + torch.arange(patches, device=device)).flatten()
        coresets = []
        for mask in kept.flatten(1).to(device):
            eligible = mask.nonzero().squeeze(1)
            first = eligible[distributed.broadcast(torch.randint(high=len(eligible), size=(1,), device=device))]
            coreset = k_center_greedy(
                projected,
                size=min(size, len(eligible)),
                first=int(first),
                eligible=None if mask.all() else mask,
                progress=self.progress,
                numbers=numbers,
            )
            coresets.append(coreset)
        return _overlap_ranges(coresets)

    def weigh(
        self, scores: torch.Tensor | None, discriminator_scores: dict[str, torch.Tensor], indices: torch.Tensor
    ) -> torch.Tensor:
        """Return the weights of some patches (SoftPatch, section 3.4).

        Args:
            scores: Noise scores of all patches, fused if there are several discriminators.
            discriminator_scores: Scores of each discriminator, same shape.
            indices: Which patches, shape ``(m,)``.

        Returns:
            Shape ``(m,)``, 0 or more.
        """
        if scores is None or not self.soft_weight:
            return torch.ones(len(indices), device=indices.device)
        if self.soft_weight == "lof":
            scores, offset = discriminator_scores["lof"], 0.0
        elif len(self.discriminators) == 1:
            offset = DISCRIMINATORS[self.discriminators[0]].weight_offset
        else:
            offset = 1.0
        return (scores.flatten()[indices] + offset).clamp_min(0)


def _as_store(features: torch.Tensor) -> FeatureStore:
    store = FeatureStore()
    store.append(features)
    return store


def _combine(scores: list[torch.Tensor]) -> torch.Tensor | None:
    if not scores:
        return None
    return scores[0] if len(scores) == 1 else fuse(scores)


def _overlap_ranges(coresets: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[tuple[int, int], ...]]:
    """Lay out one or two coresets so that each is one range of rows and shared patches are stored once.

    Two of them: patches of the first only, of both, of the second only.
    """
    if len(coresets) == 1:
        return coresets[0], ((0, len(coresets[0])),)
    # A coreset repeats a row once all eligible rows coincide with centres: shared ranges have room for it once only.
    first, second = (torch.tensor(list(dict.fromkeys(c.tolist())), device=c.device) for c in coresets)
    shared = torch.isin(first, second)
    rest = second[~torch.isin(second, first)]
    indices = torch.cat((first[~shared], first[shared], rest))
    return indices, ((0, len(first)), (len(first) - int(shared.sum()), len(indices)))
