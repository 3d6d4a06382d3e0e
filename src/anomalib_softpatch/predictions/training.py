# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What a model, or the file that it was exported to, stores about its training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from anomalib_softpatch.images.appearance import FEWEST, Appearance, UsualAppearance


@dataclass(frozen=True)
class TrainingFacts:
    """What is known about the training images."""

    names: tuple[str, ...] = ()  # SHA-256 of the files of training images, and of images that were taught
    scores: tuple[float, float, float] | None = None  # normalized out-of-bag scores: 5, 50 and 95 % quantiles
    appearance: UsualAppearance | None = None

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "TrainingFacts":
        """Restore facts from the result of :func:`dataclasses.asdict`, also after JSON. Any part may be missing."""
        scores = data.get("scores")
        return cls(
            tuple(data.get("names", ())),
            tuple(scores) if scores else None,
            UsualAppearance.from_plain(data.get("appearance")),
        )

    def remarks(self, scores: Sequence[float], images: Sequence[Appearance]) -> dict[str, str]:
        """Return a line for each way in which the images of a run differ as a whole from the training images.

        Args:
            scores: Normalized scores of the run.
            images: How its images look.

        Returns:
            Lines by what differs: ``"score"``, ``"size"``, ``"kind"`` and ``"brightness"``.
        """
        score = self.remark(scores)
        lines = {"score": score} if score else {}
        return lines if self.appearance is None else lines | self.appearance.remarks(images)

    def remark(self, scores: Sequence[float]) -> str:
        """Return a line if a run's normalized scores differ as a whole from those of training images; ``""`` if not."""
        if self.scores is None or len(scores) < FEWEST:
            return ""
        low, middle, high = self.scores
        typical = median(scores)
        if low <= typical <= high:
            return ""
        return (
            f"These images differ as a whole from the training images: their median score is {typical:.3f}. Training "
            f"images, scored as if they were new, have {middle:.3f} (5 to 95 %: {low:.3f} to {high:.3f}). Has the "
            "light, the camera or the product changed, or are most of these images defective?"
        )
