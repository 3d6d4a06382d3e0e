# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The options of a model on the ``anomalib`` command line, from the checkpoint that is given with it.

Anomalib's command makes a model from the given options before it looks at a checkpoint, so users have to repeat them.
For models of this package, options that are left at their defaults come from the checkpoint. They are set between
parsing and making the model: no hook of a model runs before that.
"""

import logging
from functools import wraps
from pathlib import Path
from typing import Any

from anomalib.cli import AnomalibCLI
from jsonargparse import ArgumentParser

from anomalib_softpatch.integration.registration import MODELS

logger = logging.getLogger(__name__)

# Those that use a trained model. A fit that continues from a checkpoint has the options that it is given.
SUBCOMMANDS = {"validate", "test", "predict", "export"}


def register() -> None:
    """Have the command line take options from checkpoints."""
    before_instantiate_classes = AnomalibCLI.before_instantiate_classes

    @wraps(before_instantiate_classes)
    def take_options_and_go_on(cli: AnomalibCLI) -> None:
        if cli.config.subcommand in SUBCOMMANDS:
            take_options(cli.config[cli.config.subcommand])
        before_instantiate_classes(cli)

    AnomalibCLI.before_instantiate_classes = take_options_and_go_on  # type: ignore[method-assign, assignment]


def take_options(config: Any) -> None:
    """Set the model's options that are left at their defaults to those of the checkpoint.

    Args:
        config: Parsed arguments of a subcommand, changed in place. Models of others, and checkpoints that are not
            files, are left to Anomalib.

    Raises:
        ValueError: If the checkpoint cannot be read (safely), or was written by another model than the one named.
    """
    from anomalib.models.components import AnomalibModule  # noqa: PLC0415  # not needed by other commands

    from anomalib_softpatch.models.checkpoint import read_options  # noqa: PLC0415  # not needed by other commands

    path, model = config.get("ckpt_path"), config.get("model")
    name = model.class_path.rpartition(".")[2] if model else None
    own = name in MODELS and model.class_path.startswith("anomalib_softpatch.")
    if not own or path is None or not Path(path).is_file():
        return
    writer, options = read_options(path)
    if writer not in {name, None}:
        msg = f"{path} was written by {writer}, but the model is {name}: use --model {writer}."
        raise ValueError(msg)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibModule, "model")
    defaults = parser.parse_args([f"--model={model.class_path}"]).model.init_args
    taken = {
        option: value
        for option, value in options.items()
        if option in defaults and model.init_args.get(option) == defaults[option] != value
    }
    for option, value in taken.items():
        model.init_args[option] = value
    if taken:
        logger.info("Options from %s: %s", path, ", ".join(f"{option}={value!r}" for option, value in taken.items()))
