# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch``, which does what Anomalib's own command does not."""

import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from importlib import import_module
from itertools import takewhile

from jsonargparse import ArgumentParser

from anomalib_softpatch.backbones import NoWeightsError
from anomalib_softpatch.extraction import Extraction, Size

# Subcommand -> module and function. The module is imported only for its subcommand or for the list of all. The
# function's signature and docstring give the options and their help.
COMMANDS = {
    "demo": ("anomalib_softpatch.demo", "demo"),
    "compare": ("anomalib_softpatch.benchmark.tables", "compare"),
    "predict": ("anomalib_softpatch.scoring.command", "predict"),
    "teach": ("anomalib_softpatch.teaching.command", "teach"),
    "verify": ("anomalib_softpatch.predictions.verification", "verify"),
    "report": ("anomalib_softpatch.report.command", "report"),
    "weights": ("anomalib_softpatch.weights", "weights"),
    "apply": ("anomalib_softpatch.report.decisions", "apply"),
    "clean-train": ("anomalib_softpatch.cleaning.command", "clean_train"),
    "undo": ("anomalib_softpatch.report.decisions", "undo"),
}
BOOLEANS = {"true", "false", "yes", "no"}
MODEL_OPTIONS = "model_options"  # parameter of commands that train a model
EXTRACTION = "extraction"  # parameter of commands that have the options of Extraction


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, by default with the arguments of the process."""
    if not sys.warnoptions:  # the user cannot act on coming changes in libraries of libraries
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    for name in ("timm", "matplotlib"):  # on layers that a backbone without its classifier lacks; on a cache of fonts
        logging.getLogger(name).setLevel(logging.ERROR)
    arguments = given = sys.argv[1:] if arguments is None else list(arguments)
    wanted = {name: COMMANDS[name] for name in arguments[:1] if name in COMMANDS} or COMMANDS
    functions = {name: getattr(import_module(module), function) for name, (module, function) in wanted.items()}

    parser = ArgumentParser(prog="anomalib-softpatch", description="Tools that complement Anomalib's own command.")
    subcommands = parser.add_subcommands()
    for name, function in functions.items():
        help_text = (inspect.getdoc(function) or "").split("\n\n", maxsplit=1)[0]
        subparser = ArgumentParser()
        subparser.add_function_arguments(function, as_positional=True, skip={EXTRACTION})
        if EXTRACTION in inspect.signature(function).parameters:
            subparser.add_class_arguments(Extraction)
        subcommands.add_subcommand(name, subparser, help=help_text)
    if arguments and arguments[0] in functions:
        arguments = _with_model_options(arguments, functions[arguments[0]])
    options = parser.parse_args(_with_values(arguments, functions.values()))
    function = functions[options.subcommand]
    try:
        values = vars(parser.instantiate_classes(options)[options.subcommand])
        if EXTRACTION in inspect.signature(function).parameters:
            values[EXTRACTION] = Extraction(**{each.name: values.pop(each.name) for each in fields(Extraction)})
        function(**values)
    except NoWeightsError as error:
        command = error.for_command([parser.prog, *given])
        parser.exit(2, f"{parser.prog} {options.subcommand}: {command}\n")
    except (OSError, ValueError) as error:  # bad input, which the message explains better than a traceback
        parser.exit(2, f"{parser.prog} {options.subcommand}: {error}\n")


def _parameters(function: Callable[..., None]) -> dict[str, inspect.Parameter]:
    """Return a command's options by name, including those of Extraction."""
    own = dict(inspect.signature(function).parameters)
    return own | dict(inspect.signature(Extraction).parameters) if own.pop(EXTRACTION, None) else own


def _with_values(arguments: Sequence[str], functions: Iterable[Callable[..., None]]) -> list[str]:
    """Write values as the parser expects them: ``true`` after a switch without a value, and sizes as lists."""
    parameters = [each for function in functions for each in _parameters(function).values()]
    switches = {f"--{parameter.name}" for parameter in parameters if parameter.default is False}
    sizes = {f"--{parameter.name}" for parameter in parameters if parameter.annotation == Size}
    written: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        written.append(argument)
        if argument in switches and (not rest or rest[0].lower() not in BOOLEANS):
            written.append("true")
        numbers = list(takewhile(str.isdecimal, rest)) if argument in sizes else []
        if len(numbers) > 1:
            written.append(f"[{','.join(numbers)}]")
            del rest[: len(numbers)]
    return written


def _with_model_options(arguments: Sequence[str], function: Callable[..., None]) -> list[str]:
    """Pass the options that the command does not have to its model; ``--model.seed 1`` works as in Anomalib's."""
    own = {*_parameters(function), "help"}
    if MODEL_OPTIONS not in own:
        return list(arguments)
    passed = []
    for argument in arguments:
        name = argument.removeprefix("--model.")
        is_own = not argument.startswith("--") or re.split(r"[=.+]", name.removeprefix("--"), maxsplit=1)[0] in own
        passed.append(argument if is_own and name == argument else f"--{MODEL_OPTIONS}.{name.removeprefix('--')}")
    return passed
