# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""From a folder that nobody has cleaned to a detector with a threshold: one command, which can be stopped."""
