# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Algorithms of SoftPatch and SoftPatch+ on plain tensors: no Lightning, no processes, each usable on its own."""

from anomalib_softpatch.components.coreset import k_center_greedy
from anomalib_softpatch.components.discriminators import DISCRIMINATORS
from anomalib_softpatch.components.feature_cache import FeatureCache
from anomalib_softpatch.components.feature_store import FeatureStore
from anomalib_softpatch.components.memory_bank import DenoisingMemoryBank, DenoisingResult, keep_mask
from anomalib_softpatch.components.patch_features import PatchFeatureExtractor
from anomalib_softpatch.components.patch_scores import PatchScores, fuse, ranks, score_patches
from anomalib_softpatch.components.references import References, nearest_patches
from anomalib_softpatch.components.search import MemoryBank, NearestNeighborSearch, nearest_neighbors
from anomalib_softpatch.components.support_radii import support_radii

__all__ = [
    "DISCRIMINATORS",
    "DenoisingMemoryBank",
    "DenoisingResult",
    "FeatureCache",
    "FeatureStore",
    "MemoryBank",
    "NearestNeighborSearch",
    "PatchFeatureExtractor",
    "PatchScores",
    "References",
    "fuse",
    "k_center_greedy",
    "keep_mask",
    "nearest_neighbors",
    "nearest_patches",
    "ranks",
    "score_patches",
    "support_radii",
]
