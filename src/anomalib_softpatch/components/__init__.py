# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Algorithms of SoftPatch and SoftPatch+ on plain tensors, each usable without Lightning."""

from anomalib_softpatch.components.comparison import Comparison, nearest_patches
from anomalib_softpatch.components.coreset import k_center_greedy
from anomalib_softpatch.components.discriminators import DISCRIMINATORS, noise_scores
from anomalib_softpatch.components.feature_store import FeatureStore
from anomalib_softpatch.components.memory_bank import DenoisingMemoryBank, MemoryBank
from anomalib_softpatch.components.nearest_neighbors import NearestNeighborSearch, nearest_neighbors
from anomalib_softpatch.components.patch_features import PatchFeatureExtractor
from anomalib_softpatch.components.threshold import fuse, keep_mask, ranks

__all__ = [
    "DISCRIMINATORS",
    "Comparison",
    "DenoisingMemoryBank",
    "FeatureStore",
    "MemoryBank",
    "NearestNeighborSearch",
    "PatchFeatureExtractor",
    "fuse",
    "k_center_greedy",
    "keep_mask",
    "nearest_neighbors",
    "nearest_patches",
    "noise_scores",
    "ranks",
]
