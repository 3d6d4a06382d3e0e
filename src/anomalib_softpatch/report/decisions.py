# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Moving and copying images as people have decided, and undoing it."""

import csv
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_softpatch.files import read_table
from anomalib_softpatch.images.decisions import DEFECT, NORMAL, SET_ASIDE, UNDECIDED, read_decisions
from anomalib_softpatch.images.paths import from_text, real_folder, to_text
from anomalib_softpatch.text import counted

LEFT_OUT = (SET_ASIDE, DEFECT)  # verdicts about images that are not trained on
MOVED = "moved.csv"  # in the folder that images were moved to
MOVED_COLUMNS = ["path", "moved_to"]
MOST_SHOWN = 10


@dataclass(frozen=True)
class Transfer:
    """Where an image is, and where it goes."""

    source: Path
    target: Path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, which need not exist, lies in a folder, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def refuse_inside(folder: Path, *targets: Path | None) -> None:
    """Refuse to write into the folder of the images.

    Raises:
        ValueError: If one of the paths that are to be written to lies in it.
    """
    inside = [path for path in targets if path is not None and is_inside(path, folder)]
    if inside:
        msg = f"{str(inside[0])!r} lies in folder={str(folder)!r}, in which nothing is changed. Choose another place."
        raise ValueError(msg)


def copy(transfers: Sequence[Transfer]) -> None:
    """Copy files; none is overwritten."""
    _refuse_existing(transfers)
    for transfer in transfers:
        transfer.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(transfer.source, transfer.target)


def move(transfers: Sequence[Transfer], folder: Path) -> str:
    """Move files, and write down in ``moved.csv`` where they were; none is overwritten.

    Each move is written down before it is made, so that all can be undone if the process is stopped.

    Args:
        transfers: Files, and where they go.
        folder: Folder for ``moved.csv``, which is appended to.

    Returns:
        A sentence that says how to bring them back.
    """
    _refuse_existing(transfers)
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / MOVED
    is_new = not record.exists()
    places = _places(transfers)
    with record.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(MOVED_COLUMNS)
        for transfer in transfers:
            writer.writerow([to_text(transfer.source), to_text(transfer.target)])
            file.flush()
            _move(transfer, places)
    return f"To bring them back: anomalib-softpatch undo {shlex.quote(to_text(record))} --dry_run false"


def apply(decisions: Path, copy_rest: Path | None = None, move_to: Path | None = None, dry_run: bool = True) -> None:
    """Say what decisions about images would do; with --dry_run false, do it.

    Nothing is ever deleted or overwritten. A symbolic link is moved as a link; links to an image that is moved go, too.

    Args:
        decisions: The file decisions.csv that the page of a report saved.
        copy_rest: Copy all images but those set aside and the defects to this folder, in the same subfolders.
        move_to: Move the images that were set aside, and the defects, to this folder, in the same subfolders, and list
            them in moved.csv there, from which anomalib-softpatch undo brings them back.
        dry_run: Only say what would be done.
    """
    if (copy_rest is None) == (move_to is None):
        msg = "Give one of --copy_rest and --move_to: a folder for the images to train on, or for the others."
        raise ValueError(msg)
    table = {decision.path: decision.verdict for decision in read_decisions(decisions)}
    counts = Counter(table.values())
    sys.stdout.write(
        f"{counted(len(table), 'image')}: {counts[SET_ASIDE]} set aside, {counted(counts[DEFECT], 'defect')}, "
        f"{counts[NORMAL]} normal, {counts[UNDECIDED]} undecided.\n"
    )
    chosen = [path for path, verdict in table.items() if (verdict in LEFT_OUT) == (copy_rest is None)]
    if copy_rest is not None:
        transfers = [each for each in _plan(chosen, table, copy_rest) if each.source.is_file()]
    else:
        assert move_to is not None
        chosen += [path for path in _links_to(chosen, table) if path not in chosen]
        transfers = _plan(chosen, table, move_to)
    gone = len(chosen) - len(transfers)
    if gone:
        sys.stdout.write(f"{gone} of them are not there any more and are left out.\n")
    _show("copied" if move_to is None else "moved", transfers, dry_run)
    if dry_run:
        return
    if move_to is None:
        copy(transfers)
    else:
        sys.stdout.write(f"{move(transfers, move_to)}\n")


def undo(moved: Path, dry_run: bool = True) -> None:
    """Say which images moved by apply would be brought back; with --dry_run false, do it.

    Args:
        moved: The file moved.csv in the folder that they were moved to.
        dry_run: Only say what would be done.
    """
    # An image may be listed more than once: moved, brought back, and moved again
    _, table = read_table(moved, MOVED_COLUMNS)
    rows = dict.fromkeys((from_text(source), from_text(target)) for _, (source, target) in table)
    transfers = [Transfer(target, source) for source, target in rows if os.path.lexists(target)]
    _refuse_existing(transfers)
    _show("moved", transfers, dry_run)
    if not dry_run:
        places = _places(transfers)
        for transfer in transfers:
            _move(transfer, places)


def _plan(images: Iterable[Path], everything: Iterable[Path], target: Path) -> list[Transfer]:
    """Say where those of the images go that are there: to the same subfolders of the folder that all have in common."""
    root = Path(os.path.commonpath([path.parent for path in everything]))
    if is_inside(target, root):
        msg = f"{str(target)!r} lies in {str(root)!r}, where the images are. Choose another place."
        raise ValueError(msg)
    transfers = [Transfer(path, target / path.relative_to(root)) for path in images if os.path.lexists(path)]
    _refuse_existing(transfers)
    return transfers


def _links_to(files: Iterable[Path], images: Iterable[Path]) -> list[Path]:
    """Return the images that are links and lead to one of the files, which would lead nowhere if that went alone."""
    real = {os.path.realpath(file) for file in files if not file.is_symlink()}
    return [path for path in images if path.is_symlink() and os.path.realpath(path) in real]


def _places(transfers: Sequence[Transfer]) -> dict[Path, Path]:
    """Return where files go, by where they really are."""
    return {real_folder(transfer.source): transfer.target for transfer in transfers}


def _move(transfer: Transfer, places: Mapping[Path, Path]) -> None:
    """Move a file. A link is made anew: it leads to the file that it led to, wherever both go."""
    transfer.target.parent.mkdir(parents=True, exist_ok=True)
    if not transfer.source.is_symlink():
        shutil.move(transfer.source, transfer.target)
        return
    written = transfer.source.readlink()
    leads_to = real_folder(transfer.source.parent / written)
    leads_to = places.get(leads_to, leads_to).absolute()
    if not written.is_absolute():
        leads_to = Path(os.path.relpath(real_folder(leads_to), os.path.realpath(transfer.target.parent)))
    transfer.target.symlink_to(leads_to)
    transfer.source.unlink()


def _show(what: str, transfers: Sequence[Transfer], dry_run: bool) -> None:
    for transfer in transfers[:MOST_SHOWN]:
        sys.stdout.write(f"  {to_text(transfer.source)} -> {to_text(transfer.target)}\n")
    if len(transfers) > MOST_SHOWN:
        sys.stdout.write(f"  ... and {len(transfers) - MOST_SHOWN} more\n")
    end = " with --dry_run false. Nothing has been changed." if dry_run else "."
    sys.stdout.write(f"{len(transfers)} images are {what}{end}\n")


def _refuse_existing(transfers: Sequence[Transfer]) -> None:
    in_the_way = [transfer.target for transfer in transfers if os.path.lexists(transfer.target)]
    if in_the_way:
        msg = (
            f"{len(in_the_way)} files are there already, {str(in_the_way[0])!r} for one, and nothing is overwritten. "
            "Give another folder."
        )
        raise ValueError(msg)
