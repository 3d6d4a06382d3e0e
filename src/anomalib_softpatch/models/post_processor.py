# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Post-processor that needs no labels: thresholds from training images, and scores that are not clipped."""

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


class ThresholdBetweenScores(F1AdaptiveThreshold):
    """Anomalib's threshold, moved halfway to the next lower score.

    Anomalib's is the lowest score that it calls anomalous, which another runtime may round to a smaller one.
    """

    def compute(self) -> torch.Tensor:
        """Return the threshold; if no score is lower, halfway to 0."""
        threshold = super().compute()
        if not dim_zero_cat(self.target).any():
            return threshold  # the highest score of normal images, which must stay normal
        scores = dim_zero_cat(self.preds)
        lower = scores[scores < threshold]
        self.value = (threshold + (lower.max() if len(lower) else 0)) / 2
        return self.value


def normalize(scores: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return s / (s + threshold) for scores s >= 0: 0 for no distance, 0.5 at the threshold, and always below 1.

    If the threshold is NaN, the scores stay as they are.
    """
    total = scores + threshold
    normalized = torch.where(total > 0, scores / total, torch.zeros_like(scores))
    return torch.where(torch.isnan(threshold), scores, normalized)


class LabelFreePostProcessor(PostProcessor):
    """Decide with the labels of validation images if there are defects among them, otherwise without labels.

    Anomalib's thresholds maximize F1 on labeled validation images; without defects among these, they are the highest
    score. Here, the threshold then comes from the out-of-bag scores of the training images, which may have defects,
    too. Of the three options for it, the first that is given counts: ``fixed_threshold``, ``expected_defects``,
    ``false_alarms``.

    Scores are normalized by :func:`normalize`.

    Args:
        false_alarms: Share of normal images that may be called anomalous, above 0 and below 1.
        expected_defects: Share of defective images among the training images, if it is known: this share of them is
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
        self._image_threshold_metric = ThresholdBetweenScores(fields=["pred_score", "gt_label"], strict=False)
        self._pixel_threshold_metric = ThresholdBetweenScores(fields=["anomaly_map", "gt_mask"], strict=False)

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
        self.set_thresholds(torch.nan, torch.nan)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget labeled defects of an earlier validation."""
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
        # A single training image has no out-of-bag score: Anomalib's highest normal score is then better than no
        # threshold. A loaded model has its own threshold.
        known = self._image_threshold if scores is None else scores.image_scores
        possible = bool(known.isfinite().any())
        without_labels = self.fixed_threshold is not None or (not labeled and possible)
        if without_labels:  # there is nothing to maximize F1 on, which Anomalib would warn about
            self._image_threshold_metric.reset()
            self._pixel_threshold_metric.reset()
        super().on_validation_epoch_end(trainer, pl_module)
        if without_labels:
            self.decide_without_labels(scores)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Set the thresholds if there was no validation."""
        if bool(self._image_threshold.isnan()):
            pl_module.on_train_epoch_end()  # builds the memory bank; Lightning calls the model's hooks later
            self.decide_without_labels(pl_module.model.out_of_bag)

    def decide_without_labels(self, scores: OutOfBagScores | None) -> None:
        """Set the thresholds from the out-of-bag scores of training images, or to the fixed threshold.

        A loaded model has no such scores (``None``), but thresholds that came with it.
        """
        if not self.enable_thresholding:
            return
        if self.fixed_threshold is not None:
            self.set_thresholds(self.fixed_threshold, torch.nan)
        elif scores is not None:
            self.set_thresholds(self.cut(scores.image_scores), self.cut(scores.map_peaks))
        else:
            return
        logger.info("Without labeled defects to learn from, the threshold is %.4g.", float(self._image_threshold))

    def set_thresholds(self, image: float, pixel: float) -> None:
        """Set the thresholds before normalization; with NaN for maps, the threshold of the image counts."""
        self._image_threshold.fill_(image)
        self._pixel_threshold.fill_(pixel)

    def cut(self, scores: torch.Tensor, known_defects: int = 0) -> float:
        """Return the threshold for out-of-bag scores of images, NaN if there are none.

        Args:
            scores: Scores of images, shape ``(n,)``.
            known_defects: Number of other images that are known to be defects, so that fewer are expected here.
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
        """Return s / (s + threshold); Anomalib clips at 0 and 1, which makes the scores of all clear defects equal."""
        return None if preds is None else normalize(preds, threshold)
