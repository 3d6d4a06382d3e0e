# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Rows to choose from, for the tests of the coreset on one and on several devices."""

import torch


def mixture(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = 5 * torch.randn(20, columns, generator=generator)
    return centers[torch.randint(20, (rows,), generator=generator)] + torch.randn(rows, columns, generator=generator)
