# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars of what may take long."""

import sys
from typing import Any

from tqdm import tqdm

# Of seconds: what is done earlier needs no bar
DELAY = 2
# Seconds between two states of a bar where all of them stay: in a file
INTERVAL = 30


def progress_bar(total: int, description: str, unit: str, progress: bool, initial: int = 0) -> "tqdm[None]":
    """Return a progress bar that appears if the work takes longer than two seconds, and if it is to be shown at all.

    A terminal and a notebook show every change. A file gets the first state after half a minute, and then one every
    half minute.
    """
    options: dict[str, Any] = {}
    if not progress:  # otherwise the environment's TQDM_DISABLE decides
        options["disable"] = True
    elif not _redraws(sys.stderr):
        options |= {"mininterval": INTERVAL, "maxinterval": INTERVAL}
    return tqdm(total=total, initial=initial, desc=description, unit=unit, delay=DELAY, **options)


def _redraws(stream: Any) -> bool:
    """Tell whether a stream shows a line that is written again in place of the one before."""
    is_terminal = getattr(stream, "isatty", None)
    return (is_terminal is not None and is_terminal()) or type(stream).__module__.startswith("ipykernel")
