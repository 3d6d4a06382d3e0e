# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The stock command ``anomalib benchmark`` with this package's benchmark."""

from anomalib.cli.pipelines import PIPELINE_REGISTRY

from anomalib_softpatch.benchmark.pipeline import NoiseBenchmark


def register() -> None:
    """Make the command use :class:`NoiseBenchmark`, which runs Anomalib's own code if no class of ours is named."""
    if PIPELINE_REGISTRY is not None:  # it is None if Anomalib finds no pipelines
        PIPELINE_REGISTRY["benchmark"] = NoiseBenchmark
