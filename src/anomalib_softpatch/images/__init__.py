# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Image files: how all commands find, read and compare them, and write their names."""
