# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The HTML page of a report."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.pages.rendering import Figure, figure, render_page
from anomalib_softpatch.report.findings import Findings, NearestPatch
from anomalib_softpatch.report.quality import inspection_curve

MOST_SHOWN = 5000  # images on the page, the most suspicious ones: a browser can show that many, and nobody needs more
BINS = 60
CURVE_POINTS = 200
CHECK_START, CHECK_END = "<!-- self-check -->", "<!-- end of self-check -->"

QUALITY = {
    "image_AUROC": ("Images", "AUROC"),
    "image_AP": ("Images", "Average precision"),
    "image_precision": ("Images", "Precision at the known count"),
    "patch_AUROC": ("Patches", "AUROC"),
    "patch_AUPRO": ("Patches", "AUPRO"),
    "patch_precision": ("Patches", "Precision at the known count"),
}


def render(
    findings: Findings, thumbnails: Mapping[int, str], folder: str | Path, evidence: Mapping[int, Figure]
) -> str:
    """Return the page as HTML, with at most the 5,000 most suspicious images.

    Args:
        findings: Findings of the set.
        thumbnails: Link to the drawing of each image, by its index; images that could not be drawn are left out.
        folder: Folder of the page.
        evidence: Why images look odd, by their indices: ``nearest_drawn`` is a link to a drawing, ``difference`` is
            what :func:`~anomalib_softpatch.pages.rendering.shown_difference` returns.
    """
    table = findings.table[:MOST_SHOWN].astype(object)
    rows = table.where(table.notna(), None).to_dict("records")
    for index, row in zip(findings.order[:MOST_SHOWN], rows, strict=True):
        row.update(figure(row["path"], findings.names[index], thumbnails.get(index), folder))
        row["findings"] = findings.oddities[index] if findings.oddities else []
        row.update(evidence.get(index, {}))
        row["nearest"] = [_place(findings, each) for each in findings.nearest.get(index, [])]
    other = findings.other_folder
    return render_page(
        "anomalib_softpatch.report",
        "report.html.jinja",
        folder,
        rows,
        [
            ("Copies in the other folder", [(copy.path, copy.reason) for copy in other.copies] if other else []),
            ("Files not looked at", findings.skipped),
            ("Images read with a loss", findings.remarks),
        ],
        findings=findings,
        bars=_histogram(findings),
        bins=BINS,
        lowest=findings.image_scores.min().item(),
        highest=findings.image_scores.max().item(),
        removed=100 * (1 - findings.kept.float().mean().item()),
        level=findings.noise_level,
        self_check=self_check_block(findings.self_check),
        quality=[(*QUALITY[name], value) for name, value in findings.quality.items()],
        inspection=[(f"{100 * share:.0f} %", count) for share, count in findings.inspection.items()],
        curve=_curve(findings),
        other=other,
        not_shown=[to_text(path) for path in findings.table["path"][MOST_SHOWN:]],
    )


def _place(findings: Findings, patch: NearestPatch) -> str:
    """Describe where a patch is, for people."""
    x, y = findings.regions[patch.image].patch_center(patch.row, patch.column, findings.grid_size)
    return f"{findings.names[patch.image]} at {x}, {y}"


def self_check_block(lines: Sequence[str]) -> str:
    """Return the lines of a self-check as HTML between two markers, which :func:`with_self_check` looks for."""
    rows = [f"<b>{escape(line)}</b>" if number == 0 else escape(line) for number, line in enumerate(lines)]
    block = f'<div class="note">{"<br>".join(rows)}</div>' if rows else ""
    return f"{CHECK_START}{block}{CHECK_END}"


def with_self_check(page: str, lines: Sequence[str]) -> str:
    """Replace the self-check in a page by new lines, the verdict first."""
    before, start, rest = page.partition(CHECK_START)
    _, end, after = rest.partition(CHECK_END)
    if not start or not end:  # the page of an earlier version
        return page
    return f"{before}{self_check_block(lines)}{after}"


def _histogram(findings: Findings) -> list[dict[str, float]]:
    """Count all images and the known noise by score, as bars of a drawing of ``BINS`` by 100 units."""
    scores = findings.image_scores.numpy()
    edges = np.histogram_bin_edges(scores, BINS)
    counts, _ = np.histogram(scores, edges)
    known = np.zeros(BINS, dtype=int)
    if findings.labels is not None:
        known, _ = np.histogram(scores[findings.labels.numpy()], edges)
    scale = 100 / counts.max()
    return [
        {"x": place, "height": float(scale * count), "known": float(scale * part), "count": int(count)}
        for place, (count, part) in enumerate(zip(counts, known, strict=True))
        if count
    ]


def _curve(findings: Findings) -> str:
    """Return the inspection curve as points of a polyline in a square of 100 units."""
    if findings.labels is None or not findings.quality:
        return ""
    found = inspection_curve(findings.labels[findings.order])
    count = len(found)
    places: Sequence[int] = sorted({round(place) for place in np.linspace(0, count - 1, CURVE_POINTS)})
    return "0,100 " + " ".join(f"{100 * (place + 1) / count:.2f},{100 - 100 * found[place]:.2f}" for place in places)
