# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Noise discriminators: each scores every training patch; the higher the score, the more likely the patch is noise.

A new discriminator is a module in this folder and a line here that imports it.
"""

from anomalib_softpatch.components.discriminators.gaussian import gaussian as gaussian
from anomalib_softpatch.components.discriminators.knn import knn as knn
from anomalib_softpatch.components.discriminators.lof import lof as lof
from anomalib_softpatch.components.discriminators.nearest import nearest as nearest
from anomalib_softpatch.components.discriminators.table import DISCRIMINATORS as DISCRIMINATORS
