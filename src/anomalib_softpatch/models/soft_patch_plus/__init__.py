# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch+."""

from anomalib_softpatch.models.soft_patch_plus.lightning_model import SoftPatchPlus

__all__ = ["SoftPatchPlus"]
