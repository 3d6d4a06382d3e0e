# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""All that is patched or wrapped in Anomalib and Lightning, without any knowledge of our models.

Changes to Anomalib's command are in :mod:`anomalib_softpatch.anomalib_command`. Nothing is changed anywhere else.
``tests/unit/integration/test_contract.py`` lists every private part of another library that is used, here or elsewhere.
Every start of Python imports this package for its registration, so nothing is imported here.
"""
