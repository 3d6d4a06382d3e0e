# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``predict``: scores the images of a folder, once or as they arrive, and gives limits of error rates."""
