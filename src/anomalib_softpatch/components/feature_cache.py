# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Feature cache: patch features on disk, looked up by the input of the backbone."""

import hashlib
import logging
import shutil
import zlib
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from anomalib_softpatch._version import __version__
from anomalib_softpatch.components.hashing import describe, hash_module, raw_bytes
from anomalib_softpatch.components.patch_features import PatchFeatureExtractor
from anomalib_softpatch.files import atomic_output

logger = logging.getLogger(__name__)

GIB = 2**30
RESERVE = 0.5 * GIB  # that stay free on the disk
ADVICE = "Give feature_cache a folder on a larger disk, delete what is not needed there, or do without feature_cache."


class FeatureCache:
    """Extract the features of each image once for all processes that share a folder.

    An entry is looked up by the input tensor of the backbone, and by everything else that the features depend on:
    weights, structure and layers of the backbone, patch embedding, numeric precision, kind of device, and versions of
    the libraries. So a changed file, another size or an augmentation never gets wrong features. Each image has one
    file, complete as soon as it exists; a damaged one is computed again. Reading entries runs no code.

    The features equal those of the extractor bit for bit if its results do not depend on which images pass through it
    together, as on a CPU. The cache deletes nothing; the folder may be deleted at any time between two runs.

    Args:
        extractor: Computes the features that are not found. Its weights must not change while the cache is used.
        folder: Folder of the cache, created if necessary. Each backbone and version has a subfolder.

    Attributes:
        folder: Subfolder of this extractor's features.
        found: Number of images whose features were found.
        computed: Number of images whose features were computed.

    Raises:
        OSError: If the folder cannot be created.
    """

    def __init__(self, extractor: PatchFeatureExtractor, folder: str | Path) -> None:
        self.extractor = extractor
        self.folder = Path(folder) / _fingerprint(extractor)
        self.found = 0
        self.computed = 0
        self._size = 0  # bytes of the entries that were read or written
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"feature_cache={str(folder)!r} cannot be written to: {error.strerror}. {ADVICE}"
            raise OSError(msg) from error

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of all patches, see :class:`PatchFeatureExtractor`, on the device of the images.

        Raises:
            OSError: If the disk is full or the folder cannot be written to. Files already written stay.
        """
        files = [self.folder / f"{key}.safetensors" for key in _keys(images)]
        features = [self._read(file) for file in files]
        missing = [index for index, known in enumerate(features) if known is None]
        self.found += len(files) - len(missing)
        if missing:
            for index, computed in zip(missing, self.extractor(images[missing]), strict=True):
                self._write(files[index], computed)
                features[index] = computed
        return torch.stack([known.to(images.device) for known in features if known is not None])

    def check_space(self, done: int, total: int) -> str:
        """Return a sentence about the disk space that the features of all images take, if there is enough.

        Args:
            done: Number of images whose features were found or computed so far.
            total: Number of all images.

        Raises:
            OSError: If there is too little space.
        """
        expected = self._size / done * total
        present = sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())
        free = shutil.disk_usage(self.folder).free
        if expected - present > free - RESERVE:
            msg = (
                f"The features of {total} images take {_gib(expected)} in feature_cache={str(self.folder.parent)!r}, "
                f"of which {_gib(present)} are there, but its disk has only {_gib(free)} free. {ADVICE}"
            )
            raise OSError(msg)
        return (
            f"The features of {total} images take {_gib(expected)} in {self.folder.parent}, of which {_gib(present)} "
            f"are there. Its disk has {_gib(free)} free."
        )

    def _read(self, file: Path) -> torch.Tensor | None:
        """Return the features in a file; ``None`` if it does not exist or is damaged."""
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            entry = load(content)
            features, checksum = entry["features"], entry["checksum"].item()
        except (SafetensorError, KeyError, RuntimeError) as error:
            logger.warning("%s is damaged and is computed again: %s", file, error)
            return None
        if zlib.crc32(raw_bytes(features)) != checksum:
            logger.warning("%s is damaged and is computed again: its checksum does not match", file)
            return None
        self._size += len(content)
        return features

    def _write(self, file: Path, features: torch.Tensor) -> None:
        features = features.detach().cpu().contiguous()
        content = save({"features": features, "checksum": torch.tensor(zlib.crc32(raw_bytes(features)))})
        try:
            with atomic_output(file) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            msg = (
                f"The features of an image could not be written to feature_cache={str(self.folder.parent)!r}: "
                f"{error.strerror}. Those of {self.computed} others are there and will be used again. {ADVICE}"
            )
            raise OSError(msg) from error
        self._size += len(content)
        self.computed += 1


def _fingerprint(extractor: PatchFeatureExtractor) -> str:
    """Return a hash of an extractor and of the versions that it computes with."""
    device = next((parameter.device.type for parameter in extractor.parameters()), "cpu")
    parts = (
        __version__, torch.__version__, timm.__version__, device, extractor.layers, extractor.patch_embedding,
        repr(extractor), hash_module(extractor),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _keys(images: torch.Tensor) -> list[str]:
    """Return a hash of each image together with the precision of the computation."""
    device = images.device.type
    autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
    settings = f"{describe(images[:1])} {autocast} {torch.get_float32_matmul_precision()}\n".encode()
    return [hashlib.sha256(settings + raw_bytes(image)).hexdigest() for image in images.cpu()]


def _gib(size: float) -> str:
    return f"{size / GIB:.2g} GiB"
