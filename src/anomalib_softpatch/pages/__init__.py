# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Pages in which people look at images and make decisions: parts that the noise report and predictions share."""
