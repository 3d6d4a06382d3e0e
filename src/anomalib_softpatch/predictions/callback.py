# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Callback that writes ``predictions.csv`` in ``anomalib predict``."""

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data import ImageBatch
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from anomalib_softpatch.images.reading import image_size
from anomalib_softpatch.predictions.table import (
    UNREADABLE,
    Prediction,
    fingerprint,
    peak,
    summary,
    time_of_change,
    verdict,
    write_predictions,
)
from anomalib_softpatch.predictions.threshold import normalized_threshold

logger = logging.getLogger(__name__)


class PredictionTable(Callback):
    """Write ``predictions.csv`` into the results folder, and print how many images are anomalous.

    In a distributed run, each rank but the first writes its images to ``predictions-rank<N>.csv``.
    """

    def __init__(self) -> None:
        self._predictions: list[Prediction] = []
        self._model = ""

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        self._predictions = []
        file = Path(trainer.ckpt_path or "")
        self._model = fingerprint(file) if file.is_file() else ""

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: ImageBatch, *args: Any, **kwargs: Any
    ) -> None:
        if not outputs.image_path or outputs.pred_score is None or outputs.anomaly_map is None:
            return
        threshold = normalized_threshold(pl_module.post_processor)
        transform = getattr(pl_module.pre_processor, "transform", None)
        for number, path in enumerate(outputs.image_path):
            score = float(outputs.pred_score[number])
            anomaly_map = np.squeeze(outputs.anomaly_map[number].float().cpu().numpy())
            x, y = peak(anomaly_map, image_size(path), transform)
            word = verdict(score, threshold)
            reason = "its score is NaN" if word == UNREADABLE else ""
            self._predictions.append(
                Prediction(str(path), score, threshold, word, x, y, reason, time_of_change(path), self._model)
            )

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        if not self._predictions:
            return
        name = "predictions.csv" if trainer.is_global_zero else f"predictions-rank{trainer.global_rank}.csv"
        path = write_predictions(self._predictions, Path(trainer.default_root_dir) / name)
        sys.stdout.write(f"{summary(Counter(each.verdict for each in self._predictions))}: {path}\n")
