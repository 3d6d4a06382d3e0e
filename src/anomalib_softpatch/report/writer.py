# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Write a noise report."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from PIL import Image

from anomalib_softpatch._version import __version__
from anomalib_softpatch.files import atomic_output, beginning, check_writable, is_page
from anomalib_softpatch.images.paths import in_spreadsheet
from anomalib_softpatch.pages.drawing import JPEG_QUALITY, difference
from anomalib_softpatch.pages.rendering import Figure, shown_difference
from anomalib_softpatch.report.drawing import image_pair, nearest_patches
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.look_alikes import MOST_EXPLAINED
from anomalib_softpatch.report.page import MOST_SHOWN, render, with_self_check

logger = logging.getLogger(__name__)

PAGE = "report.html"
IMAGES = "images.csv"
SKIPPED = "skipped.csv"
SUMMARY = "summary.json"
THUMBNAILS = "thumbnails"
WRITTEN_BY = "anomalib-softpatch, a noise report"


def write_report(findings: Findings, folder: str | Path) -> Path:
    """Write ``report.html``, ``images.csv``, ``skipped.csv``, ``summary.json`` and ``thumbnails/`` to a folder.

    All are made in a temporary folder first. When all are ready, they replace an earlier report file by file, so that
    an error before that leaves it unchanged; other files in the folder stay. ``report.html`` is removed first and
    written last: if it exists, the report is complete, even if the process was killed.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: If a file with one of these names exists and is not part of a report.
    """
    folder = Path(folder)
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        _write_files(findings, Path(temporary), folder)
        page = folder / PAGE
        page.unlink(missing_ok=True)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == page.name):
            target = folder / file.name
            if target.is_dir():
                target.replace(Path(temporary) / "earlier")  # folders do not replace each other
            file.replace(target)
    return page


def show_self_check(folder: str | Path, lines: Sequence[str]) -> None:
    """Put the lines of a fit's self-check at the top of a report that was written before the fit."""
    page = Path(folder) / PAGE
    text = page.read_text(encoding="utf-8")
    with atomic_output(page) as temporary:
        temporary.write_text(with_self_check(text, lines), encoding="utf-8")


def check_output(folder: str | Path) -> None:
    """Refuse a folder, which need not exist, in which no report can be written, before one is computed.

    Raises:
        ValueError: If it has a file or folder with a name of the report's that is not part of one.
        OSError: If nothing can be written there.
    """
    folder = Path(folder)
    foreign = [name for name in (PAGE, IMAGES, SKIPPED, SUMMARY, THUMBNAILS) if not _is_replaceable(folder / name)]
    if foreign:
        file = str(folder / foreign[0])
        msg = f"{file!r} exists and is not part of a noise report. Give another folder for the report."
        raise ValueError(msg)
    check_writable(folder)


def _is_replaceable(path: Path) -> bool:
    """Tell whether a path does not exist or is part of an earlier report."""
    if not path.exists():
        return True
    if path.name == THUMBNAILS:
        return path.is_dir() and all(re.fullmatch(r"\d+(_nearest|_copy)?\.jpg", file.name) for file in path.iterdir())
    if path.name == PAGE:
        return is_page(beginning(path), "Noise report")
    beginnings = {
        IMAGES: b"rank,path,image_score,",
        SKIPPED: b"path,reason",
        SUMMARY: f'{{\n  "written_by": "{WRITTEN_BY}"'.encode(),
    }
    return beginning(path).startswith(beginnings[path.name])


def _write_files(findings: Findings, folder: Path, final_folder: Path) -> None:
    # Names that are not valid Unicode keep their bytes, so that a path in the table can be opened.
    csv = {"index": False, "encoding": "utf-8", "errors": "surrogateescape"}
    table = findings.table.assign(path=findings.table["path"].map(in_spreadsheet))
    table.to_csv(folder / IMAGES, **csv)
    skipped = [(in_spreadsheet(path), reason) for path, reason in findings.skipped]
    pd.DataFrame(skipped, columns=["path", "reason"]).to_csv(folder / SKIPPED, **csv)
    summary = {
        "written_by": WRITTEN_BY,
        "version": __version__,
        "images": len(findings.paths),
        "skipped": len(findings.skipped),
        "duplicate_groups": len({number for number in findings.duplicate_groups if number is not None}),
        "other_folder": None if findings.other_folder is None else asdict(findings.other_folder),
    }
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="ascii")
    (folder / THUMBNAILS).mkdir()
    thumbnails = {}
    evidence: dict[int, Figure] = {}
    for rank, index in enumerate(findings.order[:MOST_SHOWN], start=1):
        name = f"{rank:05}"
        try:
            _save(image_pair(findings, index), folder / THUMBNAILS / f"{name}.jpg")
        except ValueError as error:  # deleted or changed since it was scored
            logger.warning("%s is not shown in the noise report: %s", findings.paths[index], error)
            continue
        thumbnails[index] = f"{THUMBNAILS}/{name}.jpg"
        if rank <= MOST_EXPLAINED:
            evidence[index] = _draw_evidence(findings, index, folder, f"{THUMBNAILS}/{name}")
    (folder / PAGE).write_text(render(findings, thumbnails, final_folder, evidence), encoding="utf-8")


def _draw_evidence(findings: Findings, index: int, folder: Path, name: str) -> Figure:
    """Draw why an image looks odd, and return the values for the page."""
    shown: Figure = {}
    try:
        if index in findings.copies:
            copy = findings.copies[index]
            drawn, largest = difference(findings.paths[index], findings.paths[copy], findings.largest_value)
            _save(drawn, folder / f"{name}_copy.jpg")
            shown["difference"] = shown_difference(f"{name}_copy.jpg", findings.names[copy], largest)
        if findings.nearest.get(index):
            _save(nearest_patches(findings, index), folder / f"{name}_nearest.jpg")
            shown["nearest_drawn"] = f"{name}_nearest.jpg"
    except ValueError as error:  # another image was deleted or changed
        logger.warning("%s is shown without some of the images it is compared with: %s", findings.paths[index], error)
    return shown


def _save(image: Image.Image, file: Path) -> None:
    image.save(file, "JPEG", quality=JPEG_QUALITY)
