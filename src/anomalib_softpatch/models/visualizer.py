# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Visualizer whose strips show score, threshold and verdict."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data import ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem
from anomalib.models.components import AnomalibModule
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Trainer
from PIL import Image, ImageDraw, ImageFont

from anomalib_softpatch.predictions.table import verdict
from anomalib_softpatch.predictions.threshold import normalized_threshold

BAR, FONT_SIZE, MARGIN = 28, 16, 10  # pixels
# Dark enough for white text; the verdict is also written in words
COLORS = {"anomalous": (170, 30, 30), "normal": (20, 100, 50), "": (70, 70, 70)}


class VerdictVisualizer(ImageVisualizer):
    """Anomalib's visualizer, with its options and a bar below each strip: verdict, score and threshold.

    The verdict is that of ``predictions.csv``. A file's name is not drawn: the strip's own file has it.

    Attributes:
        threshold: Normalized threshold of the model whose predictions are drawn; NaN if there is none or it is not
            known. Then the predictions' own labels count.
    """

    threshold = math.nan

    def visualize(
        self, predictions: ImageItem | NumpyImageItem | ImageBatch | NumpyImageBatch
    ) -> Image.Image | list[Image.Image | None] | None:
        """Draw predictions, one image or a batch, see Anomalib; ``None`` if there is nothing to draw."""
        strips = super().visualize(predictions)
        if isinstance(strips, list):
            items: Any = predictions  # batches yield their items
            return [self._caption(strip, item) for strip, item in zip(strips, items, strict=True)]
        item: Any = next(iter(predictions)) if isinstance(predictions, ImageBatch | NumpyImageBatch) else predictions
        return self._caption(strips, item)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: AnomalibModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the images of a batch and save them where Anomalib does; also called after a batch of predictions."""
        self.threshold = normalized_threshold(pl_module.post_processor)
        self.output_dir = self.output_dir or Path(trainer.default_root_dir) / "images"
        datamodule = getattr(trainer, "datamodule", None)
        for item in batch:
            strip = self.visualize(item)
            if isinstance(strip, Image.Image):
                file = generate_output_filename(
                    input_path=item.image_path or "",
                    output_path=self.output_dir,
                    dataset_name=getattr(datamodule, "name", None),
                    category=getattr(datamodule, "category", None),
                )
                strip.save(file)

    def _caption(self, strip: Image.Image | None, item: ImageItem | NumpyImageItem) -> Image.Image | None:
        """Add the bar to a strip."""
        if strip is None or item.pred_score is None:
            return strip
        score = float(np.asarray(item.pred_score).reshape(-1)[0])
        judged = verdict(score, self.threshold, item.pred_label if math.isnan(self.threshold) else None)
        parts = [judged or "no verdict", f"score {score:.4f}"]
        parts += [] if math.isnan(self.threshold) else [f"threshold {self.threshold:.4f}"]
        captioned = Image.new("RGB", (strip.width, strip.height + BAR), COLORS[judged])
        captioned.paste(strip)
        draw = ImageDraw.Draw(captioned)
        font = ImageFont.load_default(size=FONT_SIZE)
        draw.text((MARGIN, strip.height + BAR // 2), "   ".join(parts), font=font, fill="white", anchor="lm")
        return captioned
