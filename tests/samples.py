# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Small inputs that several tests use."""

from collections.abc import Iterable
from pathlib import Path

import torch
from hypothesis import strategies as st

from anomalib_softpatch.files import write_table
from anomalib_softpatch.images.decisions import COLUMNS, Decision
from anomalib_softpatch.images.paths import to_text

# Noise scores, some of which tie
SCORES = st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=50)


def mixture(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = 5 * torch.randn(20, columns, generator=generator)
    return centers[torch.randint(20, (rows,), generator=generator)] + torch.randn(rows, columns, generator=generator)


def random_features(images: int, height: int = 4, width: int = 5, channels: int = 8, seed: int = 0) -> torch.Tensor:
    """Features far from the origin, where expanded distances lose digits."""
    generator = torch.Generator().manual_seed(seed)
    return 100 + torch.randn(images, height, width, channels, generator=generator)


def write_decisions(decisions: Iterable[Decision], file: Path) -> None:
    """Write a file of decisions, as the pages do."""
    regions = {
        each: to_text(each.region) if isinstance(each.region, Path) else str(each.region or "") for each in decisions
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(file, COLUMNS, [[to_text(each.path), each.verdict, region] for each, region in regions.items()])
