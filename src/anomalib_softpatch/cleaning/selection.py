# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Which images are set aside before training, and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from anomalib_softpatch.files import atomic_output, write_table
from anomalib_softpatch.images.decisions import DEFECT, NORMAL, SET_ASIDE, Decision
from anomalib_softpatch.images.inventory import exact_copies
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.text import shown

COLUMNS = ["path", "reason", "moved_to"]
DECIDED = {SET_ASIDE: "decided by a person", DEFECT: "decided by a person to be a defect"}  # reasons


class Kind(Enum):
    """Kind of the reason for which an image is set aside, in words."""

    UNREADABLE = "unreadable"
    LINK = "links"
    DECIDED = "decided"
    COPY = "exact copies"
    SUSPICIOUS = "most suspicious"
    EARLIER = "by another version"  # which recorded no kind, or one that this version does not know


@dataclass(frozen=True)
class SetAside:
    """Why an image is set aside.

    Attributes:
        kind: Kind of the reason.
        reason: The reason, for people.
        moved_to: Where the image is now; ``None`` if it was not moved.
    """

    kind: Kind
    reason: str
    moved_to: Path | None = None


def choose(
    files: Mapping[str, str],
    ranked: Sequence[str],
    unreadable: Mapping[str, str],
    decisions: Mapping[str, str],
    share: float = 0.0,
    links: Mapping[str, str] | None = None,
) -> dict[str, SetAside]:
    """Choose the images to set aside.

    Decisions of a person come first. Of files that are equal byte for byte, one stays: one that a person has called
    normal, or the first by name if there is none. All copies of a defect are defects.

    Args:
        files: Hash of every image file by its name.
        ranked: Names of the images that can be read, the most suspicious first.
        unreadable: Why the other files cannot be read, by name.
        decisions: Verdict of a person, by name. Defects and images to set aside are not trained on, normal images are.
        share: Share of the ranked images, the most suspicious ones, to set aside.
        links: Name of the image that a link leads to, by the name of the link. Links are always set aside: a link is
            the same image, and would lead nowhere if that were moved.

    Returns:
        The images to set aside, by name, sorted by name.

    Raises:
        ValueError: If one of two copies is called normal and the other a defect.
    """
    links = links or {}
    chosen = {name: SetAside(Kind.UNREADABLE, reason) for name, reason in unreadable.items() if name in files}
    chosen |= {name: SetAside(Kind.LINK, f"link to {shown(image)}") for name, image in links.items()}
    decided = {name: verdict for name, verdict in decisions.items() if name in files and name not in chosen}
    decided |= {image: DEFECT for name, image in links.items() if decisions.get(name) == DEFECT}
    chosen |= {
        name: SetAside(Kind.DECIDED, DECIDED[verdict]) for name, verdict in decided.items() if verdict in DECIDED
    }
    kept = {name for name, verdict in decided.items() if verdict == NORMAL}
    for names in exact_copies(files):
        defect = next((name for name in names if decided.get(name) == DEFECT), None)
        if defect is not None:
            normal = next((name for name in names if name in kept), None)
            if normal is not None:
                msg = f"{normal!r} is called normal and {defect!r} a defect, but they are copies. Correct one of them."
                raise ValueError(msg)
            copy = SetAside(Kind.DECIDED, f"{DECIDED[DEFECT]}: exact copy of {shown(defect)}")
            chosen |= {name: copy for name in names if name not in chosen}
        left = [name for name in names if name not in chosen]
        first = next((name for name in left if name in kept), left[0] if left else "")
        copy = SetAside(Kind.COPY, f"exact copy of {shown(first)}")
        chosen |= {name: copy for name in left if name != first and name not in kept}
    for rank, name in enumerate(ranked[: round(share * len(ranked))], start=1):
        if name not in kept:
            reason = f"number {rank} of the {len(ranked)} images in the report"
            chosen.setdefault(name, SetAside(Kind.SUSPICIOUS, reason))
    return dict(sorted(chosen.items()))


def names_of(decisions: Iterable[Decision], folder: Path) -> tuple[dict[str, str], int]:
    """Return verdicts by the name of the image in a folder, and the number of decided images outside of it."""
    verdicts = {decision.path: decision.verdict for decision in decisions}
    inside = {path: verdict for path, verdict in verdicts.items() if path.is_relative_to(folder)}
    names = {path.relative_to(folder).as_posix(): verdict for path, verdict in inside.items()}
    return names, len(verdicts) - len(inside)


def write_set_aside(folder: Path, chosen: Mapping[str, SetAside], file: Path) -> None:
    """Write the list of images that were set aside.

    Args:
        folder: Folder of the images.
        chosen: Images that are set aside, by their names in the folder.
        file: CSV file to write or replace, with the columns ``path``, ``reason`` and ``moved_to``.
    """
    cells = [
        [
            to_text(folder / name),
            each.reason.encode(errors="replace").decode(),
            "" if each.moved_to is None else to_text(each.moved_to),
        ]
        for name, each in chosen.items()
    ]
    with atomic_output(file) as temporary:
        write_table(temporary, COLUMNS, cells)
