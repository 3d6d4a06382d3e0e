# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark that ``anomalib benchmark`` runs for classes of this package, and tables of its results."""
