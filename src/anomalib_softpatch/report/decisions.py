# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Move and copy images as people have decided, and undo moves."""

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

LEFT_OUT = (SET_ASIDE, DEFECT)  # verdicts that exclude an image from training
MOVED = "moved.csv"  # in the folder that images were moved to
MOVED_COLUMNS = ["path", "moved_to"]
MOST_SHOWN = 10


@dataclass(frozen=True)
class Transfer:
    """Current path of an image, and the path that it is copied or moved to."""

    source: Path
    target: Path


def is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a path, which need not exist, lies in a folder; links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def refuse_inside(folder: Path, *targets: Path | None) -> None:
    """Refuse to write into the folder of the images.

    Raises:
        ValueError: If one of the targets lies in it.
    """
    for path in targets:
        if path is not None and is_inside(path, folder):
            msg = f"{str(path)!r} lies in folder={str(folder)!r}, where nothing may change. Choose another location."
            raise ValueError(msg)


def copy(transfers: Sequence[Transfer]) -> None:
    """Copy files without overwriting any."""
    _refuse_existing(transfers)
    for transfer in transfers:
        transfer.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(transfer.source, transfer.target)


def move(transfers: Sequence[Transfer], folder: Path) -> str:
    """Move files without overwriting any, and record the moves in ``moved.csv``.

    Each move is recorded before it is made, so that all can be undone even if the process is stopped.

    Args:
        transfers: Files and their new paths.
        folder: Folder of ``moved.csv``, to which the moves are appended.

    Returns:
        A sentence that explains how to bring the files back.
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
    """Show what decisions about images would do; with --dry_run false, do it.

    Nothing is ever deleted or overwritten. A symbolic link is moved as a link. When an image is moved, so are the links
    to it.

    Args:
        decisions: The file decisions.csv that the page of a report saved.
        copy_rest: Copy all images except defects and those set aside to this folder, in the same subfolders.
        move_to: Move defects and images that were set aside to this folder, in the same subfolders. The file moved.csv
            there lists them, so that anomalib-softpatch undo can bring them back.
        dry_run: Only show what would be done.
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
    missing = len(chosen) - len(transfers)
    if missing:
        sys.stdout.write(f"Left out because they no longer exist: {missing}.\n")
    _show("copied" if move_to is None else "moved", transfers, dry_run)
    if dry_run:
        return
    if move_to is None:
        copy(transfers)
    else:
        sys.stdout.write(f"{move(transfers, move_to)}\n")


def undo(moved: Path, dry_run: bool = True) -> None:
    """Show which images that apply moved would be brought back; with --dry_run false, bring them back.

    Args:
        moved: The file moved.csv in the folder that the images were moved to.
        dry_run: Only show what would be done.
    """
    # An image is listed twice if it was moved, brought back, and moved again
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
    """Plan the transfers of the existing images, each to the same subfolder as in the common folder of all."""
    root = Path(os.path.commonpath([path.parent for path in everything]))
    if is_inside(target, root):
        msg = f"{str(target)!r} lies in {str(root)!r}, where the images are. Choose another location."
        raise ValueError(msg)
    transfers = [Transfer(path, target / path.relative_to(root)) for path in images if os.path.lexists(path)]
    _refuse_existing(transfers)
    return transfers


def _links_to(files: Iterable[Path], images: Iterable[Path]) -> list[Path]:
    """Return the images that are links to one of the files; they would lead nowhere if only the file were moved."""
    real = {os.path.realpath(file) for file in files if not file.is_symlink()}
    return [path for path in images if path.is_symlink() and os.path.realpath(path) in real]


def _places(transfers: Sequence[Transfer]) -> dict[Path, Path]:
    """Return the new path of each file by its real current path."""
    return {real_folder(transfer.source): transfer.target for transfer in transfers}


def _move(transfer: Transfer, places: Mapping[Path, Path]) -> None:
    """Move a file. A link is created anew, so that it still leads to its file after both have been moved."""
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
    done = "is" if len(transfers) == 1 else "are"
    verb, end = ("would be", " with --dry_run false. Nothing has been changed") if dry_run else (done, "")
    sys.stdout.write(f"{counted(len(transfers), 'image')} {verb} {what}{end}.\n")


def _refuse_existing(transfers: Sequence[Transfer]) -> None:
    existing = [transfer.target for transfer in transfers if os.path.lexists(transfer.target)]
    if existing:
        overwritten = f"{counted(len(existing), 'file')} would be overwritten, for example {str(existing[0])!r}"
        msg = f"{overwritten}. Give another folder."
        raise ValueError(msg)
