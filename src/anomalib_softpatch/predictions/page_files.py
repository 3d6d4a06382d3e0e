# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Where the page of a prediction run lies. Torch is not needed to refuse a place that is taken."""

import re
from pathlib import Path

from anomalib_softpatch.files import beginning, is_page

TITLE = "Predictions: "
THUMBNAIL = r"[0-9a-f]{20}(_copy)?\.jpg"


def page_files(output: Path) -> tuple[Path, Path]:
    """Return the page of a table of predictions (``output``), and the folder of its drawings.

    Raises:
        ValueError: If something other than an earlier page is there.
    """
    page, drawings = output.with_suffix(".html"), output.with_name(f"{output.stem}_thumbnails")
    is_earlier = {
        page: page != output and is_page(beginning(page), TITLE),
        drawings: drawings.is_dir() and all(re.fullmatch(THUMBNAIL, file.name) for file in drawings.iterdir()),
    }
    for path, earlier in is_earlier.items():
        if (path == output or path.exists()) and not earlier:
            msg = f"{str(path)!r} is where the page would be and is not a page of predictions. Give another output."
            raise ValueError(msg)
    return page, drawings
