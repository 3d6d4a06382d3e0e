# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Anomalib models."""

from anomalib_softpatch.models.checkpoint import load_model
from anomalib_softpatch.models.memory_bank_file import load_memory_bank, save_memory_bank
from anomalib_softpatch.models.soft_patch import SoftPatch, SoftPatchModel
from anomalib_softpatch.models.soft_patch_plus import SoftPatchPlus

__all__ = ["SoftPatch", "SoftPatchModel", "SoftPatchPlus", "load_memory_bank", "load_model", "save_memory_bank"]
