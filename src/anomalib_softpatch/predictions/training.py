# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What a model, or the file that it was exported to, says of the images that it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FEWEST = 10  # images of which a median is worth a line


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of the training images.

    Attributes:
        names: SHA-256 of the files of training images and of images that the model was taught.
        scores: 5, 50 and 95 % quantiles of the normalized scores of training images as if they were new; ``None`` if
            they are not known.
    """

    names: tuple[str, ...] = ()
    scores: tuple[float, float, float] | None = None

    def remark(self, scores: Sequence[float]) -> str:
        """Return a line where the images of a run differ as a whole from the training images; else nothing.

        Args:
            scores: Normalized scores of the run.
        """
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
