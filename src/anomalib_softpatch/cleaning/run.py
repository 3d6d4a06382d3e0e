# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The stages of clean-train in order. Each prints what it does, and computes only what no earlier run has finished."""

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from anomalib_softpatch._version import __version__
from anomalib_softpatch.backbones import find_source
from anomalib_softpatch.cleaning import selection, stages
from anomalib_softpatch.cleaning.selection import Kind, SetAside, write_set_aside
from anomalib_softpatch.cleaning.state import CHECKPOINT, REPORT, SET_ASIDE, SUMMARY, State, key_of
from anomalib_softpatch.components.self_check import LOOK, REFUSE, TRUST, FitFacts, SelfCheck, self_check
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.images.inventory import inventory, linked_names
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.report.decisions import Transfer, move
from anomalib_softpatch.report.writer import PAGE, show_self_check
from anomalib_softpatch.text import counted

STAGES = 5
FEWEST_IMAGES = 2
EXPORTED = ("model.onnx", "model.xml", "model.pt")


@dataclass(frozen=True)
class Run:
    """Arguments of all stages: the folder of the images, the one to write to, options, and the finished stages."""

    folder: Path
    output: Path
    options: stages.Options
    state: State

    @cached_property
    def settings(self) -> list[Any]:
        """What features and scores depend on, apart from the images; the weights are hashed once."""
        options, extraction = self.options, self.options.extraction
        name = extraction.backbone
        assert name is not None
        files = find_source(name).files
        weights = inventory(files[0].parent, files) if files else {}
        sizes = [extraction.size, extraction.tiles]
        compared = [options.neighborhood, options.model_options.get("min_images")]
        return [__version__, name, weights, extraction.layers, *sizes, *compared]


@dataclass(frozen=True)
class Ranking:
    """The report's findings about the images.

    Attributes:
        files: Hash of each image file by name, including files that were moved away after the report.
        moved: Files that an earlier run has moved away, by name: ``hash``, ``kind``, ``reason`` and ``moved_to``.
        ranked: Names of the readable images, the most suspicious first.
        unreadable: Reasons why the other files cannot be read, by name.
        largest_value: See :func:`~anomalib_softpatch.images.reading.read_image`.
    """

    files: dict[str, str]
    moved: dict[str, dict[str, str]]
    ranked: list[str]
    unreadable: dict[str, str]
    largest_value: int


@dataclass(frozen=True)
class Selection:
    """Names of the images to train on, and the images that are set aside, by name."""

    training: list[str]
    set_aside: dict[str, SetAside]


@dataclass(frozen=True)
class Fit:
    """Key of a checkpoint with its threshold, and the self-check of the fit."""

    key: str
    check: SelfCheck


def report(run: Run, images: Sequence[Path]) -> Ranking:
    """Rank the images of the folder and write the report."""
    files = inventory(run.folder, images)
    moved = {
        name: entry
        for name, entry in run.state.latest("move").get("moves", {}).items()
        if name not in files and os.path.lexists(entry["moved_to"])
    }
    # With the files that an earlier run has moved away, the folder may be as that run found it
    earlier = files | {name: entry["hash"] for name, entry in moved.items()}
    found = run.state.finished("report", _report_key(run, earlier))
    written = [PAGE, *(f"{name}.json" for name in run.options.exports)]
    if found is not None and all((run.output / REPORT / name).is_file() for name in written):
        _say(1, f"report of {counted(len(earlier), 'image')}: already done")
        return Ranking(earlier, moved, **found)
    _say(1, f"report of {counted(len(files), 'image')} in {to_text(run.folder)}")
    key = _report_key(run, files)
    run.state.forget("report")
    found = stages.make_report(run.folder, run.output, run.options)
    run.state.finish("report", key, found)
    return Ranking(files, moved, **found)


def select(run: Run, ranking: Ranking, decisions: Mapping[str, str], share: float) -> Selection:
    """Choose the images to set aside: by a person's verdicts, by name, and a share of the most suspicious images.

    Raises:
        ValueError: If too few images are left.
    """
    files, ranked = ranking.files, ranking.ranked
    links = linked_names(run.folder, files)
    set_aside = selection.choose(files, ranked, ranking.unreadable, decisions, share, links)
    known = {each.value for each in Kind}
    for name, entry in ranking.moved.items():  # files that were moved away cannot be trained on
        kind = Kind(entry["kind"]) if entry.get("kind") in known else Kind.EARLIER
        set_aside[name] = SetAside(kind, entry["reason"], Path(entry["moved_to"]))
    write_set_aside(run.folder, set_aside, run.output / SET_ASIDE)
    counts = Counter(each.kind.value for each in set_aside.values())
    kinds = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
    _say(2, f"set aside {counted(len(set_aside), 'image')} ({kinds})" if kinds else "nothing to set aside")
    missing = len(decisions.keys() - files.keys())
    if missing:
        sys.stdout.write(f"      {counted(missing, 'image')} with a decision: not in the folder any more.\n")
    training = sorted(set(ranked) - set_aside.keys())
    if len(training) < FEWEST_IMAGES:
        msg = f"Only {len(training)} of {len(files)} images are left to train on. Set fewer aside."
        raise ValueError(msg)
    return Selection(training, set_aside)


def fit(run: Run, ranking: Ranking, training: Sequence[str], false_alarms: float) -> Fit:
    """Train, set the threshold for a share of false alarms, and add the self-check to the report."""
    contents = [[name, ranking.files[name]] for name in training]
    settings = [*run.settings, ranking.largest_value]
    key = key_of(settings, str(run.folder), contents, run.options.model, run.options.model_options)
    found = run.state.finished("fit", key)
    title = f"fit on {counted(len(training), 'image')}"
    if found is None or not (run.output / CHECKPOINT).is_file():
        _say(3, title)
        run.state.forget("fit")
        paths = [run.folder / name for name in training]
        found = stages.fit(paths, run.output, run.options, false_alarms, ranking.largest_value)
    elif found["false_alarms"] == false_alarms:
        _say(3, f"{title}: already done")
    else:
        _say(3, f"{title}: already done, except for the threshold")
        # Until the new threshold is recorded, the checkpoint may have either one
        run.state.finish("fit", key, found | {"false_alarms": None})
        found = found | {"threshold": stages.set_threshold(run.output, found, false_alarms)}
    run.state.finish("fit", key, found | {"false_alarms": false_alarms})
    check = self_check(FitFacts(**found["facts"]), found["threshold"], false_alarms, found["scale"])
    show_self_check(run.output / REPORT, check.lines)
    return Fit(key_of(key, false_alarms), check)


def export(run: Run, fitted: Fit, kind: str) -> list[str]:
    """Export the model, and return the names of the exported files, the model's first."""
    latest = run.state.latest("export").get("kind", kind)
    if kind == "none" and run.state.finished("export", key_of(fitted.key, latest)) is not None:
        kind = latest  # an earlier run has exported the same model
    key = key_of(fitted.key, kind)
    files = (run.state.finished("export", key) or {"files": []})["files"]
    if kind == "none":
        _say(4, "no export")
    elif files and all((run.output / name).is_file() for name in files):
        _say(4, f"export to {kind}: already done")
    else:
        _say(4, f"export to {kind}")
        run.state.forget("export")
        files = [file.name for file in stages.export_checkpoint(run.output / CHECKPOINT, run.output, kind)]
        run.state.finish("export", key, {"kind": kind, "files": files})
    others = [name for name in EXPORTED if name not in files and (run.output / name).is_file()]
    if others:
        sys.stdout.write(f"      {', '.join(others)}: from an earlier run, perhaps with another threshold.\n")
    return files


def move_away(run: Run, ranking: Ranking, set_aside: Mapping[str, SetAside], target: Path | None) -> None:
    """Move the set-aside images to a folder, and list their new places; ``None`` moves nothing."""
    names = [name for name in set_aside if name not in ranking.moved]
    if target is None or not names:
        _say(5, "nothing to move")
        return
    _say(5, f"move {counted(len(names), 'image')} to {to_text(target)}")
    moved = {name: replace(set_aside[name], moved_to=Path(os.path.abspath(target / name))) for name in names}  # noqa: PTH100
    entries = {
        name: {
            "hash": ranking.files[name],
            "kind": each.kind.value,
            "reason": each.reason,
            "moved_to": str(each.moved_to),
        }
        for name, each in moved.items()
    }
    # Recorded before the move: if this process is killed, the next one knows what was moved, and where to
    run.state.finish("move", "", {"moves": ranking.moved | entries})
    undo = move([Transfer(run.folder / name, target / name) for name in names], target)
    write_set_aside(run.folder, {**set_aside, **moved}, run.output / SET_ASIDE)
    sys.stdout.write(f"      {undo}\n")


def summarize(
    run: Run, ranking: Ranking, chosen: Selection, fitted: Fit, exported: Sequence[str], share: float
) -> None:
    """Write and print the summary."""
    check = fitted.check
    predicts = bool(exported) and exported[0].endswith((".onnx", ".xml"))  # files that predict takes
    option, file = ("--model", exported[0]) if predicts else ("--ckpt_path", CHECKPOINT)
    command = f"anomalib-softpatch predict NEW_IMAGES {option} {shlex.quote(str(run.output / file))}"
    next_step = {
        TRUST: command,
        LOOK: "the same command with --decisions decisions.csv",
        REFUSE: "the same command with more images",
    }[check.verdict]
    extraction = run.options.extraction
    features = extraction.feature_cache
    assert features is not None
    page = run.output / REPORT / PAGE
    record = {
        "version": __version__,
        "folder": to_text(run.folder),
        "images": len(ranking.files),
        "set_aside": len(chosen.set_aside),
        "trained_on": len(chosen.training),
        "model": run.options.model,
        "model_options": run.options.model_options,
        "backbone": extraction.backbone,
        "layers": extraction.layers,
        "image_size": extraction.size,
        "tiles": extraction.tiles,
        "neighborhood": run.options.neighborhood,
        "largest_value": ranking.largest_value,
        "share_set_aside": share,
        "false_alarms": check.asked,
        "threshold": check.threshold,
        "self_check": check.record | {"next": next_step},
        "normalized_threshold": 0.5,
        "report": to_text(page),
        "checkpoint": to_text(run.output / CHECKPOINT),
        "exported": [to_text(run.output / name) for name in exported],
        "features": to_text(features),
        "next": command,
    }
    with atomic_output(run.output / SUMMARY) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="ascii")
    lines = [
        f"Trained on {len(chosen.training)} of {len(ranking.files)} images. Threshold {check.threshold:.4g} (0.5 once "
        "normalized).",
        *check.lines,
        *([f"Set aside: {run.output / SET_ASIDE}"] if chosen.set_aside else []),
        f"Report:    {page} (decide in it, then use --decisions decisions.csv)",
        f"Summary:   {run.output / SUMMARY}",
        f"Features:  {features} (another run with these does not need the backbone; you can delete them)",
        *([f"First:     {next_step}"] if check.verdict != TRUST else []),
        f"Next:      {command}",
    ]
    sys.stdout.write("\n".join([*lines, ""]))


def _report_key(run: Run, files: Mapping[str, str]) -> str:
    return key_of(run.settings, str(run.folder), dict(files), *run.options.exports)


def _say(number: int, text: str) -> None:
    sys.stdout.write(f"[{number}/{STAGES}] {text}\n")
    sys.stdout.flush()
