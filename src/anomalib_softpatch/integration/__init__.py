# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What is patched or wrapped in Anomalib and Lightning, knowing nothing of our models.

What is changed in Anomalib's command stands in :mod:`anomalib_softpatch.anomalib_command`, and nothing anywhere else.
``tests/unit/integration/test_contract.py`` lists every private part of another library that is used, here or elsewhere.
Every Python start imports this package for its registration, so nothing is imported here.
"""
