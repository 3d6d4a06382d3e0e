# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch``: what Anomalib's own command does not do."""

import inspect
import sys
from collections.abc import Sequence
from importlib import import_module

from jsonargparse import ArgumentParser

# Subcommand -> module and function. The module is imported when the subcommand, or the list of all, is asked for; the
# function's signature and docstring are its options and their help.
COMMANDS = {
    "demo": ("anomalib_softpatch.demo", "main"),
    "compare": ("anomalib_softpatch.benchmark.tables", "compare"),
    "predict": ("anomalib_softpatch.predictions.command", "predict"),
    "verify": ("anomalib_softpatch.predictions.verification", "verify"),
    "report": ("anomalib_softpatch.report.command", "report"),
    "weights": ("anomalib_softpatch.weights", "weights"),
    "apply": ("anomalib_softpatch.report.decisions", "apply"),
    "clean-train": ("anomalib_softpatch.cleaning.command", "clean_train"),
    "undo": ("anomalib_softpatch.report.decisions", "undo"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: Arguments of the command line, by default those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    wanted = {name: COMMANDS[name] for name in COMMANDS if name in arguments[:1]} or COMMANDS
    functions = {name: getattr(import_module(module), function) for name, (module, function) in wanted.items()}

    parser = ArgumentParser(prog="anomalib-softpatch", description="Tools beside Anomalib's own command.")
    subcommands = parser.add_subcommands()
    for name, function in functions.items():
        help_text = (inspect.getdoc(function) or "").split("\n\n", maxsplit=1)[0]
        subparser = ArgumentParser()
        subparser.add_function_arguments(function, as_positional=True)
        subcommands.add_subcommand(name, subparser, help=help_text)
    options = parser.parse_args(arguments)
    try:
        functions[options.subcommand](**parser.instantiate_classes(options)[options.subcommand])
    except (OSError, ValueError) as error:  # bad input, which the message explains better than a traceback
        parser.exit(2, f"{parser.prog} {options.subcommand}: {error}\n")
