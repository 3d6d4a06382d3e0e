# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoint files that are complete or absent, and errors that explain why one cannot be read.

Lightning writes a checkpoint to the system's temporary folder and moves it to its place, so a killed process may leave
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
    """Replace Anomalib's or Lightning's checkpoint plugin with ours, which reads some classes; a user's own stays."""
    if type(strategy.checkpoint_io) in {AnomalibCheckpointIO, TorchCheckpointIO}:
        strategy.checkpoint_io = CheckpointIO(extra_safe_globals=safe_globals)


class CheckpointIO(AnomalibCheckpointIO):
    """Anomalib's checkpoint plugin, with checkpoints that are never half-written and load on any device."""

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
                f"The checkpoint {path} could not be written: {error}. Is there space left, and is the folder "
                "writable? Earlier checkpoints are unchanged."
            )
            raise OSError(msg) from error

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        with readable(path):
            # Lightning passes None if the user did not choose: only an explicit False switches it off
            return super().load_checkpoint(path, map_location, weights_only=weights_only is not False)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Explain why a checkpoint file cannot be read in the block, where PyTorch's error does not.

    Raises:
        ValueError: If it is incomplete, is not a checkpoint, or contains code.
    """
    try:
        yield
    except Exception as error:  # unpickling bytes that are not a pickle may raise anything
        if not os.path.isfile(path):  # noqa: PTH113  # may be a URL or an open file
            raise
        if not zipfile.is_zipfile(path):
            msg = (
                f"{path} is not a checkpoint, or is incomplete ({os.path.getsize(path)} bytes): "  # noqa: PTH202
                "copy it again from where it came from, or train again."
            )
        elif isinstance(error, pickle.UnpicklingError):
            names = ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))) or "unknown code"
            msg = (
                f"{path} is not a checkpoint of SoftPatch or SoftPatch+: it asks to run code ({names}), but theirs "
                "hold plain data. Nothing has been run. Do not load it in another way unless you trust whoever made it."
            )
        else:
            raise  # the error is about the contents, not about the file
    else:
        return
    raise ValueError(msg)  # outside of the handler: PyTorch's own error recommends loading the file with its code
