# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""All that reaches from outside into Anomalib and Lightning: what is patched, wrapped or watched stands here only.

- :mod:`~anomalib_softpatch.integration.registration` makes our classes known by their bare names.
- :mod:`~anomalib_softpatch.integration.pipelines` gives ``anomalib benchmark`` our benchmark.
- :mod:`~anomalib_softpatch.integration.last_words` has failed commands end with what was wrong.
- :mod:`~anomalib_softpatch.integration.engine` has models of ours train on one device by default.
- :mod:`~anomalib_softpatch.integration.distributed` has them train without gradients on several.
- :mod:`~anomalib_softpatch.integration.compression` leaves the search out of the compression of exported models.
- :mod:`~anomalib_softpatch.integration.checkpoint_io` writes checkpoints whole and says what is wrong with one.

``tests/unit/integration/test_contract.py`` lists every private part of another library that is used, here or elsewhere.

Every Python start imports this package for its registration, so nothing is imported here.
"""
