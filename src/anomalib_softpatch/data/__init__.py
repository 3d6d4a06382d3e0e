# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Datamodules that Anomalib does not have."""

from anomalib_softpatch.data.mvtec import MVTec
from anomalib_softpatch.data.noisy import NoisyDataModule

__all__ = ["MVTec", "NoisyDataModule"]
