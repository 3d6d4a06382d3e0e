# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes that identify copies: of the bytes of files, and of the pixels in any file format."""

import hashlib
from pathlib import Path

import numpy as np

CHUNK = 2**20


def hash_files(*files: Path) -> str:
    """Return the SHA-256 of the content of a file, or of the concatenated content of several, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def hash_pixels(image: np.ndarray) -> str:
    """Return the SHA-256 of the shape and values of an image that was read, in hexadecimal."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
