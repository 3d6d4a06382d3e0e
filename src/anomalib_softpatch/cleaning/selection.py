# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Which images are set aside before training, and why."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_softpatch.cleaning.inventory import exact_copies
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.report.decisions import KEEP, SET_ASIDE
from anomalib_softpatch.text import shown

COLUMNS = ["path", "reason", "moved_to"]


@dataclass(frozen=True)
class Row:
    """An image that was set aside.

    Attributes:
        path: Where it was found.
        reason: Why it was set aside.
        moved_to: Where it is now; ``None`` if it was left where it was.
    """

    path: Path
    reason: str
    moved_to: Path | None = None


def choose(
    files: Mapping[str, str],
    ranked: Sequence[str],
    unreadable: Mapping[str, str],
    decisions: Mapping[str, str],
    share: float = 0.0,
    links: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Choose the images to set aside.

    What a person has decided comes first. Of files that are equal byte for byte, one stays: one that a person wants to
    keep if there is such a one, else the first by name.

    Args:
        files: Hash of every image file by its name.
        ranked: Names of the images that can be read, the most suspicious first.
        unreadable: Why the other files cannot be read, by name.
        decisions: What a person has decided, by name: keep, set_aside, or nothing.
        share: Share of the ranked images, the most suspicious ones, to set aside.
        links: Name of the image that a link leads to, by the name of the link. Such a link is set aside whatever has
            been decided about it: it is the same image, and would lead nowhere if that were moved.

    Returns:
        Reason for each image that is set aside, by name, sorted by name.
    """
    reasons = {name: reason for name, reason in unreadable.items() if name in files}
    reasons |= {name: f"link to {shown(image)}" for name, image in (links or {}).items()}
    decided = {name: decision for name, decision in decisions.items() if name in files and name not in reasons}
    reasons |= {name: "decided by a person" for name, decision in decided.items() if decision == SET_ASIDE}
    kept = {name for name, decision in decided.items() if decision == KEEP}
    for names in exact_copies(files):
        left = [name for name in names if name not in reasons]
        first = next((name for name in left if name in kept), left[0] if left else "")
        reasons |= {name: f"exact copy of {shown(first)}" for name in left if name != first and name not in kept}
    for rank, name in enumerate(ranked[: round(share * len(ranked))], start=1):
        if name not in kept:
            reasons.setdefault(name, f"number {rank} of the {len(ranked)} images in the report")
    return dict(sorted(reasons.items()))


def names_of(decisions: Mapping[Path, str], folder: Path) -> tuple[dict[str, str], int]:
    """Look up decisions about the images of a folder.

    Args:
        decisions: Decision about each image, from :func:`~anomalib_softpatch.report.decisions.read_decisions`.
        folder: Folder.

    Returns:
        Decisions by the name of the image in the folder, and the number of images that lie elsewhere.
    """
    inside = {path: decision for path, decision in decisions.items() if path.is_relative_to(folder)}
    names = {path.relative_to(folder).as_posix(): decision for path, decision in inside.items()}
    return names, len(decisions) - len(inside)


def write_set_aside(rows: Sequence[Row], file: Path) -> None:
    """Write the list of what was set aside.

    Args:
        rows: Images.
        file: CSV file to write or replace, with the columns ``path``, ``reason`` and ``moved_to``.
    """
    with atomic_output(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            moved_to = "" if row.moved_to is None else to_text(row.moved_to)
            writer.writerow([to_text(row.path), row.reason.encode(errors="replace").decode(), moved_to])
