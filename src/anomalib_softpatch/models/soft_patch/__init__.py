# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch."""

from anomalib_softpatch.models.soft_patch.lightning_model import SoftPatch
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel

__all__ = ["SoftPatch", "SoftPatchModel"]
