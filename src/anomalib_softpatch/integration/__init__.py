# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters to Anomalib and Lightning, which know nothing of our models: what is patched or wrapped in these libraries.

- :mod:`~anomalib_softpatch.integration.registration` makes our classes known by their bare names.
- :mod:`~anomalib_softpatch.integration.pre_processing` prepares images in exported models as in the fit.
- :mod:`~anomalib_softpatch.integration.engine` has models of ours train on one device by default.
- :mod:`~anomalib_softpatch.integration.distributed` has them train without gradients on several.
- :mod:`~anomalib_softpatch.integration.compression` leaves the search out of the compression of exported models.
- :mod:`~anomalib_softpatch.integration.checkpoint_io` writes checkpoints whole and says what is wrong with one.

What is changed in Anomalib's command stands in :mod:`anomalib_softpatch.anomalib_command`, and nothing anywhere else.
``tests/unit/integration/test_contract.py`` lists every private part of another library that is used, here or elsewhere.

Every Python start imports this package for its registration, so nothing is imported here.
"""
