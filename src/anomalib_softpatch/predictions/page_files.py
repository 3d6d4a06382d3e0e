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
    for path, free in ((page, _is_free(page) and page != output), (drawings, _is_free(drawings))):
        if not free:
            msg = f"{str(path)!r} is where the page would be and is not a page of predictions. Give another output."
            raise ValueError(msg)
    return page, drawings


def _is_free(path: Path) -> bool:
    """Tell whether nothing is there, or what an earlier page has left."""
    if path.is_dir():
        return path.suffix != ".html" and all(re.fullmatch(THUMBNAIL, file.name) for file in path.iterdir())
    return not path.exists() or is_page(beginning(path), TITLE)
