# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Limits of a model's error rates from people's decisions about images of a run: false alarms, and found defects."""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomalib_softpatch.cleaning.state import SUMMARY
from anomalib_softpatch.images.decisions import DEFECT, NORMAL, UNDECIDED, read_decisions
from anomalib_softpatch.images.finding import list_files
from anomalib_softpatch.images.hashing import hash_files
from anomalib_softpatch.images.inventory import inventory
from anomalib_softpatch.images.paths import from_text
from anomalib_softpatch.text import counted

ASSUMPTION = (
    "This holds if the images were drawn at random (or, for good ones, are the most suspicious), none was trained on, "
    "taught or used for the threshold, and their number was fixed in advance."
)


@dataclass(frozen=True)
class DecidedImage:
    """A person's verdict about an image of a run."""

    path: str  # as the run names it
    defect: bool
    whole: bool  # the verdict is about the whole image: a normal region means little for the rest
    content: str = field(default="", compare=False)  # hash of the file


@dataclass(frozen=True)
class Decided:
    """Decisions about the images of a run."""

    images: Sequence[DecidedImage]  # good images and images with a defect, one of each content
    untouched: Sequence[str]  # images without a decision
    trained: int  # number of decided images that do not count: they, or copies, were trained on or taught

    def without(self, names: Collection[str]) -> "Decided":
        """Return the decisions without images that a model was trained on or taught, given hashes of their files."""
        known = set(names)
        left = [each for each in self.images if each.content not in known]
        return replace(self, images=left, trained=self.trained + len(self.images) - len(left))


def read_decided(file: Path, images: Sequence[str], model: Path) -> Decided:
    """Read decisions about the images of a run, before they are scored by a checkpoint or an exported model.

    Raises:
        ValueError: If it is not a file of decisions, if none is about an image of the run, or if two files of the same
            content have different verdicts.
    """
    decisions: dict[str, list[tuple[str, bool]]] = {}
    for decision in read_decisions(file):
        if decision.verdict != UNDECIDED:
            verdict_and_whole = (decision.verdict, decision.region is None)
            decisions.setdefault(os.path.realpath(decision.path), []).append(verdict_and_whole)
    training = _training_contents(model)
    found: dict[str, DecidedImage] = {}
    untouched, known, trained = [], 0, 0
    for path in images:
        rows = decisions.get(os.path.realpath(path), [])
        known += bool(rows)
        if not rows:
            untouched.append(path)
        verdict = next((verdict for verdict, _ in rows if verdict in {NORMAL, DEFECT}), None)
        if verdict is None or not Path(path).is_file():
            continue
        content = hash_files(Path(path))
        if content in training:
            trained += 1
            continue
        image = DecidedImage(path, verdict == DEFECT, any(whole for _, whole in rows), content)
        first = found.setdefault(content, image)
        if first.defect != image.defect:
            pair = f"one of {first.path!r} and {path!r} normal and the other a defect"
            msg = f"decisions={str(file)!r} calls {pair}, but they are copies. Correct one of them."
            raise ValueError(msg)
    if not known:
        number = counted(len(decisions), "image")
        msg = f"decisions={str(file)!r} decides about {number}, none of which is among the {len(images)} of this run."
        raise ValueError(msg)
    return Decided(list(found.values()), untouched, trained)


def about(decided: Decided, verdicts: Mapping[str, tuple[str, float]], asked: float) -> list[str]:
    """Return lines with limits of the error rates; :mod:`~anomalib_softpatch.scoring.promise` explains when they hold.

    Args:
        decided: Decisions about images of the run.
        verdicts: Verdict and score of each image of the run by its path.
        asked: Share of good images that may be called anomalous, above 0 and below 1.
    """
    from anomalib_softpatch.scoring.promise import score_lower  # noqa: PLC0415  # imports scipy, which takes seconds

    judged = {path: row for path, row in verdicts.items() if row[0] in {"anomalous", "normal"}}
    images = [each for each in decided.images if each.path in judged]
    called = {each: judged[each.path][0] == "anomalous" for each in images}
    good = [called[each] for each in images if not each.defect and (each.whole or called[each])]
    defects = [called[each] for each in images if each.defect]
    scores = [judged[each.path][1] for each in images]
    others = [judged[path][1] for path in decided.untouched if path in judged]
    lines = []
    if decided.trained:
        left_out = f"{counted(decided.trained, 'decided image')} not counted"
        lines.append(f"{left_out}: the model was trained on them, or on copies, or was taught them. Use new ones.")
    lines.append(
        f"Good images: {sum(good)} of {len(good)} decided are called anomalous. "
        f"{_about_good(good, asked, score_lower(scores, others))}"
    )
    found = f"Defects: {sum(defects)} of {len(defects)} decided are found. "
    lines.append(found + _about_defects(defects, score_lower(others, scores)))
    return [*lines, *([ASSUMPTION] if good or defects else [])]


def _about_good(called: Sequence[bool], asked: float, lower: bool) -> str:
    """Return how many of all good images are called anomalous at most, given whether each decided one is."""
    from anomalib_softpatch.scoring.promise import at_most, more_images  # noqa: PLC0415  # imports scipy

    if not called:
        return "Decide about some, drawn at random, to know how many of all are."
    if lower:
        return "There is no limit for all: the decided images score lower than the others. Draw them at random."
    if all(called):
        return "Decide about images called normal, too, to know how many of all are."
    share, more = f"{100 * asked:g} %", more_images(sum(called), len(called), asked)
    limit = math.ceil(round(1000 * at_most(sum(called), len(called)), 6)) / 10  # percent, rounded up
    text = f"At most {limit:.1f} % of all are, 95 % sure"
    if not more:
        return f"{text} ({share} asked)."
    return f"{text}; {share} takes {counted(more, 'more good image')}, none called anomalous."


def _about_defects(found: Sequence[bool], higher: bool) -> str:
    """Return how many of all defects are found at least, given whether each decided one is."""
    from anomalib_softpatch.scoring.promise import at_least  # noqa: PLC0415  # imports scipy

    if not found:
        return "Decide about some, drawn at random, to know how many of all are."
    if higher:
        return "There is no limit for all: the decided images score higher than the others. Draw them at random."
    limit = math.floor(round(1000 * at_least(sum(found), len(found)), 6)) / 10  # percent, rounded down
    return f"At least {limit:.1f} % of all are, 95 % sure."


def _training_contents(model: Path) -> set[str]:
    """Return hashes of the images that clean-train trained on; none if its summary or the folder is missing."""
    try:
        summary = json.loads((model.parent / SUMMARY).read_text(encoding="utf-8"))
        files = {from_text(text).name for text in (summary["checkpoint"], *summary["exported"])}
        folder = from_text(summary["folder"]) if model.name in files else None
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or another program's
        return set()
    return set() if folder is None else set(inventory(folder, list_files(folder).images).values()) - {""}
