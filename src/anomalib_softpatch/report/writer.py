# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Writing a noise report."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from PIL import Image

from anomalib_softpatch.report.contact_sheet import contact_sheet, image_pair
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.html import render

logger = logging.getLogger(__name__)

MOST_SHOWN = 20
LEAST_SHOWN = 12


def write_report(findings: Findings, folder: str | Path) -> Path:
    """Write ``report.html``, ``images.csv``, ``skipped.csv``, ``most_suspicious.png`` and ``least_suspicious.png``.

    All are made in a temporary folder first. A report that is there already is replaced, file by file, when all are
    ready, so that an error leaves it as it was; other files in the folder stay. ``report.html`` goes first and comes
    last: where it is, the report is whole, even if the process is killed.

    Args:
        findings: What to report.
        folder: Folder to write to, made if need be.

    Returns:
        Path of ``report.html``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        _write_files(findings, Path(temporary))
        page = folder / "report.html"
        page.unlink(missing_ok=True)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == page.name):
            file.replace(folder / file.name)
    return page


def _write_files(findings: Findings, folder: Path) -> None:
    # Names that are no Unicode keep their bytes, so that a path in the table can be opened.
    csv = {"index": False, "encoding": "utf-8", "errors": "surrogateescape"}
    findings.table.to_csv(folder / "images.csv", **csv)
    pd.DataFrame(findings.skipped, columns=["path", "reason"]).to_csv(folder / "skipped.csv", **csv)
    most_count = min(MOST_SHOWN, (len(findings.order) + 1) // 2)
    least_count = min(LEAST_SHOWN, len(findings.order) - most_count)
    most = _pairs(findings, findings.order[:most_count])
    least = _pairs(findings, findings.order[len(findings.order) - least_count :][::-1])
    for name, pairs in (("most", most), ("least", least)):
        if pairs:
            contact_sheet(findings, pairs, f"{name.capitalize()} suspicious images").save(
                folder / f"{name}_suspicious.png",
                compress_level=3,  # texture hardly gets smaller beyond, only slower
            )
    (folder / "report.html").write_text(render(findings, most, least), encoding="utf-8")


def _pairs(findings: Findings, indices: list[int]) -> dict[int, Image.Image]:
    """Draw images; one that has gone or changed since it was scored is left out."""
    pairs = {index: _pair(findings, index) for index in indices}
    return {index: pair for index, pair in pairs.items() if pair is not None}


def _pair(findings: Findings, index: int) -> Image.Image | None:
    try:
        return image_pair(findings, index)
    except (OSError, ValueError) as error:
        logger.warning("%s is not shown in the noise report: %s", findings.paths[index], error)
        return None
