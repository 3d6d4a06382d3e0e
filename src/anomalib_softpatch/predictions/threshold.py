# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The threshold that gives the verdicts of predictions."""

from anomalib.post_processing import PostProcessor


def normalized_threshold(post_processor: object) -> float:
    """Return the threshold of normalized image scores; NaN if there is none."""
    if isinstance(post_processor, PostProcessor) and not bool(post_processor.image_threshold.isnan()):
        return float(post_processor.normalized_image_threshold)
    return float("nan")
