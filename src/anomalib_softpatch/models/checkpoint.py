# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints that are whole or not there, and errors that say why one cannot be used.

Lightning writes a checkpoint to the system's temporary folder and moves it to its place, which copies it where that
folder is on another file system: a killed process then leaves half of one. Anomalib reads a checkpoint without mapping
it to a device that this machine has. Both are done by the trainer's checkpoint plugin, which :class:`CheckpointMixin`
replaces unless the user has chosen one.
"""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from anomalib_softpatch._version import __version__
from anomalib_softpatch.files import atomic_output

# Entry that marks a checkpoint as ours. Without it, it is one of before 0.1.0, which loads all the same.
KEY = "anomalib_softpatch"
FORMAT = 1  # to be raised whenever an older version could not, or not rightly, use a newer one's checkpoints
OWN_STATE = {"model.memory_bank", "model.weights"}  # no model of Anomalib has both


class CheckpointIO(AnomalibCheckpointIO):
    """Anomalib's checkpoint plugin, with checkpoints that are written whole and load on any device."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; it is complete when it is there.

        Args:
            checkpoint: What to save.
            path: File to write or replace, or a URL, which is left to Lightning.
            storage_options: Not used, see Lightning.

        Raises:
            OSError: If it cannot be written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with atomic_output(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as a RuntimeError
            msg = (
                f"The checkpoint {path} could not be written: {error}. Is there space left, and may the folder be "
                "written to? Earlier checkpoints are as they were."
            )
            raise OSError(msg) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint without running code that it may hold.

        Args:
            path: Checkpoint file.
            map_location: Device for its tensors, whichever they were saved on.
            weights_only: ``False`` runs code that the file holds.

        Returns:
            The checkpoint.

        Raises:
            ValueError: If it cannot be read, or not safely.
        """
        with readable(path):
            # Lightning hands on None where the user has said nothing; only an explicit False is one.
            return super().load_checkpoint(path, map_location, weights_only=weights_only is not False)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Say what is wrong with a checkpoint file where PyTorch's error does not.

    Args:
        path: File that is read in the block.

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


class CheckpointMixin:
    """Mark checkpoints as ours, and refuse those that do not fit the model."""

    def setup(self, stage: str) -> None:
        """Replace the checkpoint plugin of Anomalib or Lightning; a user's own stays.

        Args:
            stage: Stage of the trainer.
        """
        super().setup(stage)
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) in {AnomalibCheckpointIO, TorchCheckpointIO}:
            strategy.checkpoint_io = CheckpointIO(extra_safe_globals=self.checkpoint_safe_globals())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint.

        Args:
            checkpoint: What is saved.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] = {"format": FORMAT, "version": __version__, "model": self._own_name()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit.

        Args:
            checkpoint: What is loaded.

        Raises:
            ValueError: If it is another model's, a newer version's, or one of other options.
        """
        reason = self._reason_against(checkpoint)
        if reason:
            trainer = self._trainer  # none in load_from_checkpoint, whose caller has just given the path
            msg = f"{trainer.ckpt_path if trainer else 'The checkpoint'} {reason}"
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Make a model from a checkpoint, see Anomalib's ``AnomalibModule.load_from_checkpoint``.

        Args:
            checkpoint_path: Checkpoint file.
            *args: See Anomalib.
            **kwargs: See Anomalib; options given here replace those of the checkpoint.

        Returns:
            The model.

        Raises:
            ValueError: If it cannot be read, not safely, or does not fit.
        """
        with readable(checkpoint_path):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    @classmethod
    def _own_name(cls) -> str:
        """Name of the class of this package, also for a user's subclass."""
        package = __name__.partition(".")[0] + "."
        return next(each.__name__ for each in cls.__mro__ if each.__module__.startswith(package))

    def _reason_against(self, checkpoint: dict[str, Any]) -> str:
        """Say why a checkpoint does not fit, as the end of a sentence; empty if it does."""
        state = checkpoint.get("state_dict", {})
        mark = checkpoint.get(KEY, {})
        if mark.get("format", 0) > FORMAT:
            return (
                f"was written by anomalib-softpatch {mark.get('version')} in format {mark['format']}. This is "
                f"anomalib-softpatch {__version__}, which knows formats up to {FORMAT}: install the newer version."
            )
        if not state.keys() >= OWN_STATE:
            return (
                "was written by another model than SoftPatch and SoftPatchPlus: it has no weighted memory bank. Use "
                "the model that it was trained with."
            )
        if mark.get("model", self._own_name()) != self._own_name():
            return f"was written by {mark['model']}, but the model is {self._own_name()}: use {mark['model']}."
        extractor = self.model.feature_extractor
        saved = checkpoint.get("hyper_parameters", {})
        for name, value in (("layers", extractor.layers), ("patch_embedding", extractor.patch_embedding)):
            other = saved.get(name, value)
            if (list(other) if name == "layers" else other) != value:
                return f"was trained with {name}={other}, but the model has {name}={value}: give it the same."
        shapes = {f"model.feature_extractor.{key}": tensor.shape for key, tensor in extractor.state_dict().items()}
        if any(key not in state or state[key].shape != shape for key, shape in shapes.items()):
            return (
                f"was trained with another backbone ({saved.get('backbone', 'a module of its own')}) than the model's "
                f"({self.hparams.get('backbone', 'a module')}): give the model the same."
            )
        return ""
