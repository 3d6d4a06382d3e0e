# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars: every part of a fit that may take long has one, and reaches its total."""

import io
import re
import sys

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


def test_short_or_unwanted_work_has_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    features = torch.randn(30, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    for wanted in (True, False):
        builder = DenoisingMemoryBank(("knn",), (0.0,), soft_weight=False)
        builder.progress = wanted
        builder.fit(features)
    assert "%" not in capfd.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Stream:
    """Some programs replace standard error with such a stream."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def states(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show a bar whose work takes 100 seconds, by the clock that tqdm uses."""
    clock = iter(range(10_000))
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress.progress_bar(100, "Working", "image", progress=True)
    bar._time = lambda: start + next(clock)  # one second later at each call
    start = bar.start_t
    for _ in range(100):
        bar.update()
    bar.close()


def test_a_file_gets_a_state_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for stream in (Terminal(), io.StringIO(), Stream()):
        states(stream, monkeypatch)
        text = stream.text if isinstance(stream, Stream) else stream.getvalue()
        shown[type(stream).__name__] = text.count("Working:")
    assert shown["Terminal"] > 20
    assert 2 <= shown["StringIO"] <= 6
    assert 2 <= shown["Stream"] <= 6


def test_without_a_bar_the_stream_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress.progress_bar(5, "Working", "image", progress=False) as bar:
        bar.update(5)
