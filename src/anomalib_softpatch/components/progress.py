# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars for work that may take long."""

import sys
from typing import Any

from tqdm import tqdm

# Seconds: shorter work needs no bar
DELAY = 2
# Seconds between two states of a bar in a file, where all of them stay
INTERVAL = 30


def progress_bar(total: int, description: str, unit: str, progress: bool, initial: int = 0) -> "tqdm[None]":
    """Return a progress bar that appears if ``progress`` is true and the work takes longer than two seconds.

    A terminal and a notebook show every change. A file gets a new state every half minute.
    """
    options: dict[str, Any] = {}
    if not progress:  # otherwise the environment's TQDM_DISABLE decides
        options["disable"] = True
    elif not _redraws(sys.stderr):
        options |= {"mininterval": INTERVAL, "maxinterval": INTERVAL}
    return tqdm(total=total, initial=initial, desc=description, unit=unit, delay=DELAY, **options)


def _redraws(stream: Any) -> bool:
    """Return whether a line that is written again replaces the one before in this stream."""
    is_terminal = getattr(stream, "isatty", None)
    return (is_terminal is not None and is_terminal()) or type(stream).__module__.startswith("ipykernel")
