# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What Anomalib's command ``anomalib`` does differently if a class of this package is used.

:mod:`anomalib_softpatch.integration.registration` calls each module's ``register()`` once the part of Anomalib that it
changes has been imported.
"""
