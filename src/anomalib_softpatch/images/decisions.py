# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Decisions of people about images, as the pages write and all commands read them. No torch is imported."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomalib_softpatch.files import read_table
from anomalib_softpatch.images.paths import from_text, real_folder
from anomalib_softpatch.images.reading import read_image

COLUMNS = ["path", "verdict", "region"]
# Without a region, and as the report's page of version 0.2 saved them
OTHER_COLUMNS = [["path", "verdict"], ["path", "decision"]]
NORMAL, DEFECT, SET_ASIDE, UNDECIDED = "normal", "defect", "set_aside", ""
ADDED = "added"  # of images that nobody has said anything about and a model learns from; in no file
OTHER_WORDS = {"keep": NORMAL, "false_alarm": NORMAL, "missed_defect": DEFECT}
SIXTEEN_BITS = 65535  # the deepest masks have no larger value
NUMBERS = re.compile(r"[-+.\d\s]+")


@dataclass(frozen=True)
class Box:
    """Part of an image as it is displayed, in pixels: from column ``x`` and row ``y`` on.

    Raises:
        ValueError: If it has no area, or begins outside of the image.
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
            msg = f"the box '{self}' begins outside of the image: its x and y must be 0 or more"
            raise ValueError(msg)

    def __str__(self) -> str:
        return f"{self.x} {self.y} {self.width} {self.height}"


Region = Box | Path  # a path is that of a mask: pixels other than zero are the region


@dataclass(frozen=True)
class Decision:
    """What a person has said of an image."""

    path: Path
    verdict: str  # NORMAL, DEFECT, SET_ASIDE (not to be trained on, whatever it shows) or UNDECIDED
    region: Region | None = None  # where the verdict holds; None for the whole image


def read_decisions(file: Path) -> list[Decision]:
    """Read a file of decisions.

    It is a CSV table with the columns ``path``, ``verdict`` and ``region``; the last one may be left out. Relative
    paths count from the folder of the file. A verdict is ``normal``, ``defect``, ``set_aside`` or empty; ``keep`` and
    ``false_alarm`` are read as ``normal``, and ``missed_defect`` as ``defect``. A region is empty, a box of four whole
    numbers ``x y width height``, or the path of a mask. Tables with the columns ``path`` and ``decision``, which
    version 0.2 saved, are read, too.

    Returns:
        The decisions in the order of the file, equal ones once. Of an image that is decided, no row is undecided. An
        undecided link to a defect is a defect, and so is what a link leads to that is called a defect.

    Raises:
        ValueError: If it is not such a file, if it has no rows, if a verdict or a region cannot be read, if a mask is
            missing, or if an image has two different verdicts.
        OSError: If the file cannot be read.
    """
    _, rows = read_table(file, COLUMNS, *OTHER_COLUMNS)
    if not rows:
        msg = f"{str(file)!r} has no images in it. Decide about at least one."
        raise ValueError(msg)
    folder = file.absolute().parent
    decisions: dict[Decision, int] = {}  # with the row that it was first found in
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
    """Return the pixels of a region, a box or a mask file, of an image of a width and height as it is displayed.

    Returns:
        Shape ``(height, width)``, true in the region.

    Raises:
        ValueError: If a box reaches outside of the image, or if a mask cannot be read, has another size than the image,
            or has no pixel other than zero.
    """
    width, height = size
    if isinstance(region, Box):
        if region.x + region.width > width or region.y + region.height > height:
            msg = f"The box '{region}' reaches outside of its image of {width} x {height} pixels. Give a smaller one."
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
        found = f"{mask.shape[1]} x {mask.shape[0]}"
        msg = f"The mask {str(region)!r} has {found} pixels and its image {width} x {height}. Give one of that size."
        raise ValueError(msg)
    if not mask.any():
        msg = f"The mask {str(region)!r} has no pixel other than zero. Mark a region in it."
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
        msg = f"the region {text!r} is neither a box (x y width height) nor a mask file that is there"
        raise ValueError(msg)
    return mask


def _images_of(decision: Decision) -> set[str]:
    """Return the files that a decision is about. To set a link aside says nothing of the image that it leads to."""
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
                    f"{earlier.verdict} in row {decisions[earlier]}. Leave one of them."
                )
                raise ValueError(msg)
