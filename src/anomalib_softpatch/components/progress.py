# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Progress bars of what may take long."""

from tqdm import tqdm

# Of seconds: what is done earlier needs no bar
DELAY = 2


def progress_bar(total: int, description: str, unit: str, progress: bool, initial: int = 0) -> "tqdm[None]":
    """Return a progress bar that appears if the work takes longer than two seconds, and if it is to be shown at all."""
    # What is not said leaves it to the environment's TQDM_DISABLE
    hidden = {} if progress else {"disable": True}
    return tqdm(total=total, initial=initial, desc=description, unit=unit, delay=DELAY, **hidden)
