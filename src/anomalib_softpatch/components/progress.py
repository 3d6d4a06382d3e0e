# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars of what may take long."""

import sys
from typing import Any

from tqdm import tqdm

# Of seconds: what is done earlier needs no bar
DELAY = 2
# Seconds between two states of a bar where all of them stay, as in a file
INTERVAL = 30


def progress_bar(total: int, description: str, unit: str, progress: bool, initial: int = 0) -> "tqdm[None]":
    """Return a progress bar that appears if the work takes longer than two seconds, and if it is to be shown at all.

    A terminal shows every change, a log file gets one every half minute.
    """
    options: dict[str, Any] = {} if sys.stderr.isatty() else {"mininterval": INTERVAL, "maxinterval": INTERVAL}
    if not progress:  # otherwise the environment's TQDM_DISABLE decides
        options["disable"] = True
    return tqdm(total=total, initial=initial, desc=description, unit=unit, delay=DELAY, **options)
