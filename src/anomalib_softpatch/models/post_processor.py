# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Post-processor that needs no labels: thresholds from training images, and scores that do not clip."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer
from torchmetrics.utilities import dim_zero_cat

from anomalib_softpatch.components.out_of_bag import OutOfBagScores, false_alarm_threshold
from anomalib_softpatch.options import FALSE_ALARMS, check

if TYPE_CHECKING:
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin

logger = logging.getLogger(__name__)

# Anomalib's names of what finds the thresholds, and what of a batch it looks at
METRICS = {
    "_image_threshold_metric": ["pred_score", "gt_label"],
    "_pixel_threshold_metric": ["anomaly_map", "gt_mask"],
}


class ThresholdBetweenScores(F1AdaptiveThreshold):
    """Anomalib's threshold, half way to the next lower score.

    Anomalib's is the lowest score that it calls anomalous, which another runtime may round to a smaller one.
    """

    def compute(self) -> torch.Tensor:
        """Return the threshold; where no score is lower, half way to 0."""
        threshold = super().compute()
        if not dim_zero_cat(self.target).any():
            return threshold  # the highest score of normal images, which shall stay normal
        scores = dim_zero_cat(self.preds)
        lower = scores[scores < threshold]
        self.value = (threshold + (lower.max() if len(lower) else 0)) / 2
        return self.value


def normalize(scores: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return s / (s + threshold): 0 for no distance at all, 0.5 at the threshold, and below 1 however large.

    Where the threshold is not a number, the scores, which are 0 or more, stay as they are.
    """
    total = scores + threshold
    normalized = torch.where(total > 0, scores / total, torch.zeros_like(scores))
    return torch.where(torch.isnan(threshold), scores, normalized)


class LabelFreePostProcessor(PostProcessor):
    """Decide with the labels of validation images where there are defects among them, else without any.

    Anomalib's thresholds maximize F1 on labeled validation images; without defects among these they are the highest
    score. Here, the threshold then comes from the out-of-bag scores of the training images, which themselves may hold
    defects. Of the three ways to say how strict to be, the first that is given counts: ``fixed_threshold``,
    ``expected_defects``, ``false_alarms``.

    A score s becomes s / (s + threshold): 0 for no distance at all, 0.5 at the threshold, and below 1 however large.

    Args:
        false_alarms: Share of normal images that may be called anomalous, above 0 and below 1.
        expected_defects: Share of defective images among the training images, if it is known: as many of them are
            above the threshold.
        fixed_threshold: Threshold of the image score itself, before normalization.
        **options: Options of Anomalib's ``PostProcessor``.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        false_alarms: float = FALSE_ALARMS,
        expected_defects: float | None = None,
        fixed_threshold: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.false_alarms = false_alarms
        self.expected_defects = expected_defects
        self.fixed_threshold = fixed_threshold
        check(false_alarms=false_alarms, expected_defects=expected_defects, fixed_threshold=fixed_threshold)
        self._has_labeled_defects = False
        for name, fields in METRICS.items():
            self.add_module(name, ThresholdBetweenScores(fields=fields, strict=False))

    @property
    def asked_false_alarms(self) -> float | None:
        """Share of false alarms that the image threshold was set for; ``None`` if it came from elsewhere."""
        other = self.fixed_threshold is not None or self.expected_defects is not None or self._has_labeled_defects
        return None if other else self.false_alarms

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        """Names of the options that a checkpoint holds, see Anomalib."""
        return (*super()._checkpoint_config_keys, "false_alarms", "expected_defects", "fixed_threshold")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget thresholds of an earlier fit."""
        self._image_threshold.fill_(torch.nan)
        self._pixel_threshold.fill_(torch.nan)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for labeled defects anew."""
        self._has_labeled_defects = False

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: ImageBatch, *args: Any, **kwargs: Any
    ) -> None:
        """Take the scores and labels of a batch."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if outputs.gt_label is not None and bool(outputs.gt_label.any()):
            self._has_labeled_defects = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Set the thresholds."""
        labeled = trainer.strategy.reduce_boolean_decision(self._has_labeled_defects, all=False)
        self._has_labeled_defects = labeled
        scores = pl_module.model.out_of_bag
        # Of a single training image nothing can be scored out of bag: Anomalib's highest normal score is better than
        # no threshold then. A loaded model has brought its own.
        known = self._image_threshold if scores is None else scores.image_scores
        possible = bool(known.isfinite().any())
        without_labels = self.fixed_threshold is not None or (not labeled and possible)
        if without_labels:  # nothing to maximize F1 on, which Anomalib would warn of
            self._image_threshold_metric.reset()
            self._pixel_threshold_metric.reset()
        super().on_validation_epoch_end(trainer, pl_module)
        if without_labels:
            self.decide_without_labels(scores)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Set the thresholds where there was no validation."""
        if bool(self._image_threshold.isnan()):
            pl_module.on_train_epoch_end()  # builds the memory bank; Lightning calls the model's hooks later
            self.decide_without_labels(pl_module.model.out_of_bag)

    def decide_without_labels(self, scores: OutOfBagScores | None) -> None:
        """Set the thresholds from the out-of-bag scores of training images, or to what is fixed.

        A loaded model has no such scores (``None``), but thresholds that came with it.
        """
        if not self.enable_thresholding:
            return
        if self.fixed_threshold is not None:
            self._image_threshold.fill_(self.fixed_threshold)
            self._pixel_threshold.fill_(torch.nan)  # the image's counts
        elif scores is not None:
            self._image_threshold.fill_(self.cut(scores.image_scores))
            self._pixel_threshold.fill_(self.cut(scores.map_peaks))
        else:
            return
        logger.info("Without labeled defects to learn from, the threshold is %.4g.", float(self._image_threshold))

    def set_thresholds(self, image: float, pixel: float) -> None:
        """Set the thresholds before normalization; that of maps may be not a number, the image's counts then."""
        self._image_threshold.fill_(image)
        self._pixel_threshold.fill_(pixel)

    def cut(self, scores: torch.Tensor, known_defects: int = 0) -> float:
        """Return the threshold for out-of-bag scores of images, not a number if there are none.

        Args:
            scores: Scores of images, shape ``(n,)``.
            known_defects: Number of further images that are known to be defects, so that fewer are to be expected.
        """
        if self.expected_defects is None:
            return false_alarm_threshold(scores, self.false_alarms)
        finite = scores[scores.isfinite()].sort().values
        if not len(finite):
            return float("nan")
        expected = self.expected_defects * (len(finite) + known_defects) - known_defects
        last = int((1 - max(0.0, expected) / len(finite)) * (len(finite) - 1))  # the highest score that is normal
        return float(finite[last : last + 2].mean())

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None, norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor
    ) -> torch.Tensor | None:
        """Return s / (s + threshold); Anomalib cuts at 0 and 1, where scores of defects then are all alike."""
        return None if preds is None else normalize(preds, threshold)
