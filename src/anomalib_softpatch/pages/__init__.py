# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Pages in which people look at images and decide about them: what the noise report and predictions share."""
