# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Benchmarks of models against noise: what ``anomalib benchmark`` runs for classes of this package, and its tables.

The shape is that of Anomalib's own pipelines: :mod:`~anomalib_softpatch.benchmark.pipeline` reads the configuration and
chooses :mod:`~anomalib_softpatch.benchmark.runners`, which have a :mod:`~anomalib_softpatch.benchmark.generator` make
:mod:`jobs <anomalib_softpatch.benchmark.job>` and add what these measure to
:mod:`~anomalib_softpatch.benchmark.results`. :mod:`~anomalib_softpatch.benchmark.tables` reads those again.
"""
