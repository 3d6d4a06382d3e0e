# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Benchmarks of models against noise: what ``anomalib benchmark`` runs for classes of this package, and its tables."""
