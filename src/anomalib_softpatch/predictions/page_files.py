# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Files of the page of a prediction run. Names that are taken are refused without importing torch."""

import re
from pathlib import Path

from anomalib_softpatch.files import beginning, is_page

TITLE = "Predictions: "
THUMBNAIL = r"[0-9a-f]{20}(_copy)?\.jpg"


def page_files(output: Path) -> tuple[Path, Path]:
    """Return the path of the page of a table of predictions (``output``), and of the folder of its drawings.

    Raises:
        ValueError: If one of them exists and is not from an earlier page.
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
