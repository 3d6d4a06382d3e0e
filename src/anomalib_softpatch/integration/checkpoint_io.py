# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoint files that are whole or not there, and errors that say why one cannot be read.

Lightning writes a checkpoint to the system's temporary folder and moves it to its place: a killed process may leave
half of one. Anomalib reads a checkpoint without mapping it to a device that this machine has.
"""

import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from typing_extensions import override

from anomalib_softpatch.files import atomic_output


def use_own_checkpoint_io(strategy: Strategy, safe_globals: Sequence[Any] = ()) -> None:
    """Replace the checkpoint plugin of Anomalib or Lightning by one that reads some classes; a user's own stays."""
    if type(strategy.checkpoint_io) in {AnomalibCheckpointIO, TorchCheckpointIO}:
        strategy.checkpoint_io = CheckpointIO(extra_safe_globals=safe_globals)


class CheckpointIO(AnomalibCheckpointIO):
    """Anomalib's checkpoint plugin, with checkpoints that are written whole and load on any device."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with atomic_output(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as a RuntimeError
            msg = (
                f"The checkpoint {path} could not be written: {error}. Is there space left, and may the folder be "
                "written to? Earlier checkpoints are unchanged."
            )
            raise OSError(msg) from error

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        with readable(path):
            # Lightning hands on None where the user has said nothing; only an explicit False is one.
            return super().load_checkpoint(path, map_location, weights_only=weights_only is not False)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Say what is wrong with a checkpoint file that is read in the block, where PyTorch's error does not.

    Raises:
        ValueError: If it is cut off, no checkpoint, or holds code.
    """
    try:
        yield
    except Exception as error:  # what is no pickle ends in whatever the bytes happen to mean
        if not os.path.isfile(path):  # noqa: PTH113  # may be a URL or an open file
            raise
        if not zipfile.is_zipfile(path):
            msg = (
                f"{path} is no checkpoint, or not a whole one ({os.path.getsize(path)} bytes): "  # noqa: PTH202
                "copy it again from where it came from, or train again."
            )
        elif isinstance(error, pickle.UnpicklingError):
            names = ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))) or "unknown code"
            msg = (
                f"{path} is no checkpoint of SoftPatch or SoftPatch+: it asks to run code ({names}), and theirs hold "
                "plain data. Nothing has been run. Do not load it in another way unless you trust whoever made it."
            )
        else:
            raise  # not about the file, but about what is in it
    else:
        return
    raise ValueError(msg)  # outside of the handler: PyTorch's own advice is to load the file with code
