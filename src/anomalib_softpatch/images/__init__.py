# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What every command needs to know of image files: where they are, what is in them, and how to write their names."""
