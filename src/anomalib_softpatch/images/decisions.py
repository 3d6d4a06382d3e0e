# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Decisions of people about images: the pages write them, and all commands read them. Torch is not imported."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomalib_softpatch.files import read_table
from anomalib_softpatch.images.paths import from_text, real_folder
from anomalib_softpatch.images.reading import read_image

COLUMNS = ["path", "verdict", "region"]
OTHER_COLUMNS = [["path", "verdict"], ["path", "decision"]]  # the second one is from version 0.2
NORMAL, DEFECT, SET_ASIDE, UNDECIDED = "normal", "defect", "set_aside", ""
ADDED = "added"  # verdict about images that a model learns from without a decision; never in a file
OTHER_WORDS = {"keep": NORMAL, "false_alarm": NORMAL, "missed_defect": DEFECT}
SIXTEEN_BITS = 65535  # largest value in the deepest masks
NUMBERS = re.compile(r"[-+.\d\s]+")


@dataclass(frozen=True)
class Box:
    """Part of an image as it is displayed, in pixels, with its top left corner at column ``x`` and row ``y``.

    Raises:
        ValueError: If it has no area, or begins outside the image.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1:
            msg = f"the box '{self}' has no area: its width and height must be 1 or more"
            raise ValueError(msg)
        if min(self.x, self.y) < 0:
            msg = f"the box '{self}' begins outside the image: its x and y must be 0 or more"
            raise ValueError(msg)

    def __str__(self) -> str:
        return f"{self.x} {self.y} {self.width} {self.height}"


Region = Box | Path  # a path leads to a mask, whose nonzero pixels are the region


@dataclass(frozen=True)
class Decision:
    """A person's verdict about an image."""

    path: Path
    verdict: str  # NORMAL, DEFECT, SET_ASIDE (not for training, whatever it shows) or UNDECIDED
    region: Region | None = None  # part that the verdict is about; None for the whole image


def read_decisions(file: Path) -> list[Decision]:
    """Read a file of decisions.

    It is a CSV table with the columns ``path``, ``verdict`` and, optionally, ``region``. Relative paths start at the
    folder of the file. A verdict is ``normal``, ``defect``, ``set_aside`` or empty; ``keep`` and ``false_alarm`` are
    read as ``normal``, and ``missed_defect`` as ``defect``. A region is empty, a box of four whole numbers
    ``x y width height``, or the path of a mask. Tables with the columns ``path`` and ``decision``, which version 0.2
    saved, can be read, too.

    Returns:
        The decisions in the order of the file, without repetitions, and without undecided rows of images that another
        row decides. If one of an image and a link to it is a defect and the other is undecided, both are defects.

    Raises:
        ValueError: If it is not such a file, if it has no rows, if a verdict or a region is invalid, if a mask is
            missing, or if an image has two different verdicts.
        OSError: If the file cannot be read.
    """
    _, rows = read_table(file, COLUMNS, *OTHER_COLUMNS)
    if not rows:
        msg = f"{str(file)!r} has no images. Decide about at least one."
        raise ValueError(msg)
    folder = file.absolute().parent
    decisions: dict[Decision, int] = {}  # number of the first row with each decision
    for number, (path, verdict, *region) in rows:
        try:
            decision = Decision(_absolute(path, folder), _verdict(verdict), _region("".join(region), folder))
        except ValueError as error:
            msg = f"{str(file)!r}, row {number}: {error}."
            raise ValueError(msg) from error
        decisions.setdefault(decision, number)
    _refuse_contradictions(decisions, file)
    decided = {each.path for each in decisions if each.verdict != UNDECIDED}
    defects = {os.path.realpath(each.path) for each in decisions if each.verdict == DEFECT}
    return [
        replace(each, verdict=DEFECT) if each.verdict == UNDECIDED and os.path.realpath(each.path) in defects else each
        for each in decisions
        if each.verdict != UNDECIDED or each.path not in decided
    ]


def region_mask(region: Region, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a box or mask file, given width and height of the image as it is displayed.

    Returns:
        Shape ``(height, width)``, true in the region.

    Raises:
        ValueError: If a box extends beyond the image, or if a mask cannot be read, differs in size from the image, or
            has only zeros.
    """
    width, height = size
    if isinstance(region, Box):
        if region.x + region.width > width or region.y + region.height > height:
            msg = f"The box '{region}' extends beyond its image of {width} x {height} pixels. Give a smaller one."
            raise ValueError(msg)
        mask = np.zeros((height, width), dtype=bool)
        mask[region.y : region.y + region.height, region.x : region.x + region.width] = True
        return mask
    try:
        mask = (read_image(region, SIXTEEN_BITS)[0] != 0).any(axis=0)
    except ValueError as error:
        msg = f"The mask {str(region)!r} cannot be used: {error}."
        raise ValueError(msg) from error
    if mask.shape != (height, width):
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels, but its image has {width} x {height}"
        msg = f"The mask {str(region)!r} has {sizes}. Give a mask of that size."
        raise ValueError(msg)
    if not mask.any():
        msg = f"The mask {str(region)!r} has only zeros. Mark a region in it."
        raise ValueError(msg)
    return mask


def _absolute(path: str, folder: Path) -> Path:
    if not path or "\0" in path:
        msg = f"{path!r} is not the path of a file"
        raise ValueError(msg)
    return Path(os.path.abspath(folder / from_text(path)))  # noqa: PTH100  # resolve() would follow links


def _verdict(text: str) -> str:
    word = text.strip()
    word = OTHER_WORDS.get(word, word)
    if word not in {NORMAL, DEFECT, SET_ASIDE, UNDECIDED}:
        msg = f"the verdict {text!r} must be {NORMAL}, {DEFECT}, {SET_ASIDE}, or empty"
        raise ValueError(msg)
    return word


def _region(text: str, folder: Path) -> Region | None:
    text = text.strip()
    if not text:
        return None
    if NUMBERS.fullmatch(text):
        numbers = text.split()
        if len(numbers) != 4 or not all(re.fullmatch(r"[-+]?\d+", number) for number in numbers):  # noqa: PLR2004
            msg = f"the box {text!r} must be four whole numbers: x y width height"
            raise ValueError(msg)
        return Box(*map(int, numbers))
    mask = _absolute(text, folder)
    if not mask.is_file():
        msg = f"the region {text!r} is neither a box (x y width height) nor an existing mask file"
        raise ValueError(msg)
    return mask


def _images_of(decision: Decision) -> set[str]:
    """Return the files that a decision is about. Setting a link aside is not about the image that it leads to."""
    files = {str(real_folder(decision.path))}
    return files | {os.path.realpath(decision.path)} if decision.verdict in {NORMAL, DEFECT} else files


def _refuse_contradictions(decisions: dict[Decision, int], file: Path) -> None:
    first: dict[str, Decision] = {}
    for decision, number in decisions.items():
        if decision.verdict == UNDECIDED:
            continue
        for earlier in [first.setdefault(name, decision) for name in _images_of(decision)]:
            if earlier.verdict != decision.verdict:
                msg = (
                    f"{str(file)!r}, row {number}: {str(decision.path)!r} is {decision.verdict} here and "
                    f"{earlier.verdict} in row {decisions[earlier]}. Keep one of them."
                )
                raise ValueError(msg)
