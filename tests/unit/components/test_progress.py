# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars: every part of a fit that may take long has one, whose total is what there is to do."""

import re

import pytest
import torch

from anomalib_softpatch.components import DenoisingMemoryBank, progress

PARTS = ["Looking for copies", "Comparing patches", "Selecting coreset", "Finding support"]


@pytest.mark.parametrize("neighborhood", [1, "image"])
def test_all_parts_end_at_their_totals(
    neighborhood: int | str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0)
    builder = DenoisingMemoryBank(
        ("knn",), (0.0,), soft_weight=False, min_images="auto", coreset_sampling_ratio=0.05, neighborhood=neighborhood
    )
    builder.progress = True
    builder.fit(torch.randn(30, 6, 6, 8, generator=torch.Generator().manual_seed(0)))
    shown = capfd.readouterr().err
    ends = [re.findall(rf"{part}: +(\d+)%", shown)[-1] for part in PARTS]
    assert ends == ["100"] * len(PARTS)


def test_what_is_short_or_not_wanted_has_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    features = torch.randn(30, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    for wanted in (True, False):
        builder = DenoisingMemoryBank(("knn",), (0.0,), soft_weight=False)
        builder.progress = wanted
        builder.fit(features)
    assert "%" not in capfd.readouterr().err
