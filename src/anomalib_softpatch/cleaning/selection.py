# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Which images are set aside before training, and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_softpatch.cleaning.inventory import exact_copies
from anomalib_softpatch.files import atomic_output, write_table
from anomalib_softpatch.images.decisions import DEFECT, NORMAL, SET_ASIDE, Decision
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.text import shown

COLUMNS = ["path", "reason", "moved_to"]
DECIDED = {SET_ASIDE: "decided by a person", DEFECT: "decided by a person to be a defect"}  # reasons


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

    What a person has decided comes first. Of files that are equal byte for byte, one stays: one that a person has
    called normal if there is such a one, else the first by name.

    Args:
        files: Hash of every image file by its name.
        ranked: Names of the images that can be read, the most suspicious first.
        unreadable: Why the other files cannot be read, by name.
        decisions: Verdict of a person, by name: what is set aside or a defect is not trained on, and what is normal is.
        share: Share of the ranked images, the most suspicious ones, to set aside.
        links: Name of the image that a link leads to, by the name of the link. Such a link is set aside whatever has
            been decided about it: it is the same image, and would lead nowhere if that were moved.

    Returns:
        Reason for each image that is set aside, by name, sorted by name.
    """
    reasons = {name: reason for name, reason in unreadable.items() if name in files}
    reasons |= {name: f"link to {shown(image)}" for name, image in (links or {}).items()}
    decided = {name: verdict for name, verdict in decisions.items() if name in files and name not in reasons}
    reasons |= {name: DECIDED[verdict] for name, verdict in decided.items() if verdict in DECIDED}
    kept = {name for name, verdict in decided.items() if verdict == NORMAL}
    for names in exact_copies(files):
        left = [name for name in names if name not in reasons]
        first = next((name for name in left if name in kept), left[0] if left else "")
        reasons |= {name: f"exact copy of {shown(first)}" for name in left if name != first and name not in kept}
    for rank, name in enumerate(ranked[: round(share * len(ranked))], start=1):
        if name not in kept:
            reasons.setdefault(name, f"number {rank} of the {len(ranked)} images in the report")
    return dict(sorted(reasons.items()))


def names_of(decisions: Iterable[Decision], folder: Path) -> tuple[dict[str, str], int]:
    """Look up decisions about the images of a folder.

    Args:
        decisions: Decisions, from :func:`~anomalib_softpatch.images.decisions.read_decisions`.
        folder: Folder.

    Returns:
        Verdicts by the name of the image in the folder, and the number of images that lie elsewhere.
    """
    verdicts = {decision.path: decision.verdict for decision in decisions}
    inside = {path: verdict for path, verdict in verdicts.items() if path.is_relative_to(folder)}
    names = {path.relative_to(folder).as_posix(): verdict for path, verdict in inside.items()}
    return names, len(verdicts) - len(inside)


def write_set_aside(rows: Sequence[Row], file: Path) -> None:
    """Write the list of what was set aside.

    Args:
        rows: Images.
        file: CSV file to write or replace, with the columns ``path``, ``reason`` and ``moved_to``.
    """
    cells = [
        [
            to_text(row.path),
            row.reason.encode(errors="replace").decode(),
            "" if row.moved_to is None else to_text(row.moved_to),
        ]
        for row in rows
    ]
    with atomic_output(file) as temporary:
        write_table(temporary, COLUMNS, cells)
