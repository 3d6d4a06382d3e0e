# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions where users look for them: a table of scores and verdicts, and a line for each image."""
