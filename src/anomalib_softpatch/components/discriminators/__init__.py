# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Noise discriminators: each scores every training patch, the higher the more likely it is noise.

A new discriminator is a module of its own, like those here, and a line that imports it.
"""

from anomalib_softpatch.components.discriminators.gaussian import gaussian as gaussian
from anomalib_softpatch.components.discriminators.knn import knn as knn
from anomalib_softpatch.components.discriminators.lof import lof as lof
from anomalib_softpatch.components.discriminators.nearest import nearest as nearest
from anomalib_softpatch.components.discriminators.table import DISCRIMINATORS as DISCRIMINATORS
