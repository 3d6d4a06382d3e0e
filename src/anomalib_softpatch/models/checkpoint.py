# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints that say whose they are, and errors that say why one does not fit the model."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_softpatch._version import __version__
from anomalib_softpatch.integration.checkpoint_io import readable, use_own_checkpoint_io
from anomalib_softpatch.models.compatibility import (
    BACKBONE_SHAPES,
    SCORE_SMOOTHING,
    Origin,
    own_name,
    reason_against,
    reason_against_format,
    shapes,
)

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule as _Module

    from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel
else:  # a mixin at run time: Anomalib finds models among the direct subclasses of AnomalibModule only
    _Module = object

# Entry that marks a checkpoint as ours. Without it, it is one of before 0.1.0, which loads all the same.
KEY = "anomalib_softpatch"
FORMAT = 1  # to be raised whenever an older version could not, or not rightly, use a newer one's checkpoints
OWN_STATE = {"model.memory_bank", "model.weights"}  # no model of Anomalib has both
EXTRACTOR = "model.feature_extractor."


class CheckpointMixin(_Module):
    """Mark checkpoints as ours, and refuse those that do not fit the model."""

    model: "SoftPatchModel"

    def setup(self, stage: str) -> None:
        """Have checkpoints written whole, and read on any device.

        Args:
            stage: Stage of the trainer.
        """
        super().setup(stage)
        use_own_checkpoint_io(self.trainer.strategy, self.checkpoint_safe_globals())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint.

        Args:
            checkpoint: What is saved.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] = {"format": FORMAT, "version": __version__, "model": own_name(type(self))}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit.

        Args:
            checkpoint: What is loaded.

        Raises:
            ValueError: If it is another model's, a newer version's, or one of other options.
        """
        reason = self._reason_against(checkpoint)
        if reason:
            path = None
            with suppress(RuntimeError):  # no trainer in load_from_checkpoint, whose caller has just given the path
                path = self.trainer.ckpt_path
            msg = f"{path or 'The checkpoint'} {reason}"
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # neither is Anomalib's Lightning's
        cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
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

    def _reason_against(self, checkpoint: dict[str, Any]) -> str:
        """Say why a checkpoint does not fit, as the end of a sentence; empty if it does."""
        state = checkpoint.get("state_dict", {})
        mark = checkpoint.get(KEY, {})
        if newer := reason_against_format(mark.get("format", 0), FORMAT, mark.get("version")):
            return newer
        if not state.keys() >= OWN_STATE:
            return (
                "was written by another model than SoftPatch and SoftPatchPlus: it has no weighted memory bank. Use "
                "the model that it was trained with."
            )
        options = checkpoint.get("hyper_parameters", {})
        requirements = {name: options[name] for name in ("layers", "patch_embedding") if name in options}
        if "layers" in requirements:
            requirements["layers"] = list(requirements["layers"])
        requirements[SCORE_SMOOTHING] = float(options.get(SCORE_SMOOTHING, 0.0))
        extractor = {name.removeprefix(EXTRACTOR): value for name, value in state.items() if name.startswith(EXTRACTOR)}
        requirements[BACKBONE_SHAPES] = shapes(extractor)
        origin = Origin(
            model=mark.get("model"),
            backbone=options.get("backbone"),
            requirements=requirements,
        )
        return reason_against(self, origin)
