# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Strips with verdict, score and threshold."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.models import Patchcore
from anomalib.visualization import ImageVisualizer
from PIL import Image, ImageDraw

from anomalib_softpatch.models import SoftPatch
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.models.visualizer import BAR, COLORS, VerdictVisualizer

SCORES = [0.25, 0.75]
# The second is as long as file systems allow, and has a line break
NAMES = ["plain.png", "line\nbreak" + "x" * 240 + ".png"]


@pytest.fixture
def batch(tmp_path: Path) -> ImageBatch:
    paths = [tmp_path / "set" / name for name in NAMES]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (40, 30), "gray").save(path)
    return ImageBatch(
        image=torch.rand(2, 3, 64, 64),
        image_path=list(map(str, paths)),
        anomaly_map=torch.rand(2, 1, 64, 64),
        pred_mask=torch.zeros(2, 1, 64, 64, dtype=torch.bool),
        pred_score=torch.tensor(SCORES),
        pred_label=torch.tensor([False, True]),
    )


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that are written into images."""
    written = []
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, place: tuple[float, float], text: str, **options: object) -> None:
        written.append(text)
        draw(self, place, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def predict(visualizer: ImageVisualizer, batch: ImageBatch, folder: Path, threshold: float) -> list[Image.Image]:
    post_processor = LabelFreePostProcessor()
    post_processor._image_threshold.fill_(threshold)
    visualizer.on_predict_batch_end(
        SimpleNamespace(default_root_dir=folder), SimpleNamespace(post_processor=post_processor), batch, batch, 0
    )
    files = {path.name: path for path in folder.rglob("*.png")}
    return [Image.open(files[name]) for name in NAMES]


def test_bar_below_what_anomalib_draws(batch: ImageBatch, tmp_path: Path, texts: list[str]) -> None:
    strips = predict(VerdictVisualizer(), batch, tmp_path / "ours", threshold=3.0)
    bars = [text for text in texts if "score" in text]
    assert bars == [
        "normal   score 0.2500   threshold 0.5000",
        "anomalous   score 0.7500   threshold 0.5000",
    ]
    theirs = predict(ImageVisualizer(), batch, tmp_path / "theirs", threshold=3.0)
    for strip, plain, verdict in zip(strips, theirs, ("normal", "anomalous"), strict=True):
        assert strip.size == (plain.width, plain.height + BAR)
        assert np.array_equal(np.asarray(strip)[: plain.height], np.asarray(plain))
        bar = np.asarray(strip)[plain.height :]
        assert tuple(bar[0, 0]) == COLORS[verdict]
        assert (bar == 255).all(axis=2).any()  # and white text on it


def test_without_a_threshold_there_is_no_verdict_but_the_label(
    batch: ImageBatch, tmp_path: Path, texts: list[str]
) -> None:
    predict(VerdictVisualizer(), batch, tmp_path / "labels", threshold=float("nan"))
    batch.pred_label = None
    predict(VerdictVisualizer(), batch, tmp_path / "nothing", threshold=float("nan"))
    assert [text for text in texts if "score" in text] == [
        "normal   score 0.2500",
        "anomalous   score 0.7500",
        "no verdict   score 0.2500",
        "no verdict   score 0.7500",
    ]


def test_one_image_a_batch_and_numpy_are_drawn_alike(batch: ImageBatch) -> None:
    visualizer = VerdictVisualizer()
    strips = visualizer.visualize(batch)
    assert len(strips) == 2
    for items in (list(batch), list(batch.to_numpy())):
        for strip, item in zip(strips, items, strict=True):
            assert np.array_equal(np.asarray(visualizer(item))[-BAR:], np.asarray(strip)[-BAR:])
    batch.pred_score = None
    assert {strip.height for strip in visualizer.visualize(batch)} == {strips[0].height - BAR}


def test_default_of_our_models_alone() -> None:
    options = {"backbone": "test_resnet", "layers": ["layer1"], "pre_trained": False}
    assert isinstance(SoftPatch(**options).visualizer, VerdictVisualizer)
    assert SoftPatch(**options, visualizer=False).visualizer is None
    assert type(Patchcore(**options).visualizer) is ImageVisualizer
