# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluator that reports metrics that cannot be computed."""

import logging
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from lightning.pytorch import LightningModule, Trainer
from torch import nn

logger = logging.getLogger(__name__)

LABELS = {"gt_label": "images", "gt_mask": "pixels"}


class LabelAwareEvaluator(Evaluator):
    """Anomalib's evaluator, which skips metrics that need both normal and anomalous labels if one kind is missing.

    These would be 0, as if the model found nothing. The arguments are those of Anomalib's evaluator.
    """

    _seen: dict[str, set[bool]]

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the labels of an earlier test."""
        self._seen = {name: set() for name in LABELS}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the metrics and note which labels there are."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        for name, seen in self._seen.items():
            labels = getattr(batch, name, None)
            if isinstance(labels, torch.Tensor) and len(seen) < len((False, True)):
                seen.update(labels.bool().unique().tolist())

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics that can be computed, and name the others."""
        missing = {
            name: kind
            for name in LABELS
            for kind, value in (("normal", False), ("anomalous", True))
            if not trainer.strategy.reduce_boolean_decision(value in self._seen[name], all=False)
        }
        all_metrics: Any = self.test_metrics  # torch types them as modules only
        kept, reasons = [], {}
        for metric in all_metrics:
            without = [name for name in getattr(metric, "fields", ()) if name in missing]
            if without:
                reasons[metric.name] = f"no test {LABELS[without[0]]} are labeled {missing[without[0]]}"
                metric.reset()
            else:
                kept.append(metric)
        self.test_metrics = nn.ModuleList(kept)
        try:
            super().on_test_epoch_end(trainer, pl_module)
        finally:
            self.test_metrics = all_metrics
        for reason in sorted(set(reasons.values())):
            names = ", ".join(name for name, other in reasons.items() if other == reason)
            logger.warning("%s cannot be computed: %s.", names, reason)
