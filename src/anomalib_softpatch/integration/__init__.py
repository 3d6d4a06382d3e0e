# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""All that reaches from outside into Anomalib and Lightning: what is patched, wrapped or watched stands here only.

Every Python start imports this package for its registration, so nothing is imported here.
"""
