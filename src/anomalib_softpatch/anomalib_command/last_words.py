# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The last lines that a failed ``anomalib`` command prints.

Anomalib has Rich print uncaught errors in about 200 lines. For bad input to a class of this package, only the message
is printed. If a model of this package is used, a full disk is explained below the traceback.
"""

import errno
import re
import sys
from pathlib import Path
from traceback import extract_tb
from types import TracebackType

from anomalib_softpatch.backbones import NoWeightsError

PACKAGE = Path(__file__).resolve().parents[1]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# How the parser, jsonargparse, reports that a class could not be made (tests/end_to_end/test_careless_train.py)
NOT_MADE = re.compile(r"\nErrors:\n(?P<errors>.*)\nGiven value type:.*class_path='anomalib_softpatch\.", re.DOTALL)
OTHER_TYPE = re.compile(r"Expected an? <class")


def register() -> None:
    """Have the output of uncaught errors in this process end with the cause."""
    usual = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = bad_input(error)
        if message:
            sys.stderr.write(f"anomalib: {message}\n")
            return
        usual(kind, error, traceback)
        from anomalib_softpatch.integration.engine import is_changed  # noqa: PLC0415  # imported with the command

        if (full_disk := no_space(error)) and is_changed():
            sys.stderr.write(f"anomalib: {full_disk}\n")

    sys.excepthook = excepthook


def bad_input(error: BaseException) -> str:
    """Return the message of an error that this package raised on purpose; empty for other errors."""
    if missing := NoWeightsError.found_in(str(error)):  # the parser passes on only the message
        return missing.for_command(["anomalib", *sys.argv[1:]])
    if isinstance(error, ValueError) and (match := NOT_MADE.search(str(error))):
        reasons = re.split(r"^ *- ", match["errors"], flags=re.MULTILINE)
        return "\n".join(reason.strip() for reason in reasons if reason.strip() and not OTHER_TYPE.match(reason))
    frames = extract_tb(error.__traceback__)
    on_purpose = (
        isinstance(error, ValueError | TypeError | OSError | RuntimeError)
        and bool(frames)
        and Path(frames[-1].filename).is_relative_to(PACKAGE)
        and (frames[-1].line or "").startswith("raise ")
    )
    return str(error) if on_purpose else ""


def no_space(error: BaseException | None) -> str:
    """Say that the disk is full if that is what an error, or one that led to it, was about; empty otherwise."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            place = f" that holds {error.filename}" if error.filename else ""
            return (
                f"There is no space left on the disk{place} ({error.strerror}). Free some, or use another disk: "
                "--default_root_dir for results, the environment variable TMPDIR for temporary files."
            )
        error = error.__cause__ or error.__context__
    return ""
