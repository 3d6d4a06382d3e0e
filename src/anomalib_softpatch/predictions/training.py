# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What a model, or the file that it was exported to, says of the images that it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from anomalib_softpatch.images.appearance import FEWEST, Appearance, UsualAppearance


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of the training images."""

    names: tuple[str, ...] = ()  # SHA-256 of the files of training images, and of images that were taught
    scores: tuple[float, float, float] | None = None  # normalized, as if the images were new: 5, 50, 95 %
    appearance: UsualAppearance | None = None  # as a whole

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "TrainingFacts":
        """Return what :func:`dataclasses.asdict` was given, before or after JSON; files of before 0.3 say nothing."""
        scores = data.get("scores")
        return cls(
            tuple(data.get("names", ())),
            tuple(scores) if scores else None,
            UsualAppearance.from_plain(data.get("appearance")),
        )

    def remarks(self, scores: Sequence[float], images: Sequence[Appearance]) -> dict[str, str]:
        """Return a line for each way in which the images of a run differ as a whole from the training images.

        They are named ``"score"`` (normalized), ``"size"``, ``"kind"`` and ``"brightness"``.
        """
        score = self.remark(scores)
        said = {"score": score} if score else {}
        return said if self.appearance is None else said | self.appearance.remarks(images)

    def remark(self, scores: Sequence[float]) -> str:
        """Return a line where the normalized scores of a run differ as a whole from those of training; else nothing."""
        if self.scores is None or len(scores) < FEWEST:
            return ""
        low, middle, high = self.scores
        typical = median(scores)
        if low <= typical <= high:
            return ""
        return (
            f"These images differ as a whole from the training images: their median score is {typical:.3f}, and that "
            f"of training images as if they were new {middle:.3f} (5 to 95 %: {low:.3f} to {high:.3f}). Has the "
            "light, the camera or the product changed, or are most of them defects?"
        )
