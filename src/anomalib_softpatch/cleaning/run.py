# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""One run of clean-train: which stages are to be done, and what is said and written down of each."""

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalib_softpatch._version import __version__
from anomalib_softpatch.backbones import find_source
from anomalib_softpatch.cleaning import stages
from anomalib_softpatch.cleaning.command import REPORT
from anomalib_softpatch.cleaning.selection import Row, choose, write_set_aside
from anomalib_softpatch.cleaning.stages import CHECKPOINT, Options
from anomalib_softpatch.cleaning.state import State, key_of
from anomalib_softpatch.components.self_check import LOOK, REFUSE, TRUST, FitFacts, SelfCheck, self_check
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.images.inventory import inventory, linked_names
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.images.reading import EIGHT_BITS
from anomalib_softpatch.report.decisions import MOVED, Transfer, move
from anomalib_softpatch.report.writer import PAGE, show_self_check
from anomalib_softpatch.text import counted

SET_ASIDE = "set_aside.csv"
SUMMARY = "summary.json"
STAGES = 5
FEWEST_IMAGES = 2
EXPORTED = ("model.onnx", "model.xml", "model.pt")
FOR_PREDICTION = (".onnx", ".xml")  # what anomalib-softpatch predict takes beside a checkpoint


class Run:
    """One run of the stages, each of which is skipped where an earlier run has finished it.

    Args:
        folder: Folder of the images.
        output: Folder that is written to.
        options: Options of report and fit.
        state: What earlier runs have finished.
    """

    def __init__(self, folder: Path, output: Path, options: Options, state: State) -> None:
        self.folder = folder
        self.output = output
        self.options = options
        self.state = state
        self.files: dict[str, str] = {}  # hash of each image file by name, those moved away included
        self.moved: dict[str, dict[str, str]] = {}  # what an earlier run has moved away, by name
        self.ranked: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.largest_value = EIGHT_BITS
        self.reasons: dict[str, str] = {}
        self.threshold = float("nan")
        self.check: SelfCheck | None = None
        self.exported: list[str] = []
        self.fit_key = ""

    def report(self, images: Sequence[Path]) -> None:
        """Rank the images and write the report.

        Args:
            images: The image files of the folder.
        """
        self.files = inventory(self.folder, images)
        planned = (self.state.latest("move") or {}).get("moves", {})
        self.moved = {
            name: entry
            for name, entry in planned.items()
            if name not in self.files and os.path.lexists(entry["moved_to"])
        }
        # With what an earlier run has moved away, the folder may be what that run found
        earlier = self.files | {name: entry["hash"] for name, entry in self.moved.items()}
        found = self.state.finished("report", self._report_key(earlier))
        if found is not None and stages.has_report(self.output, self.options):
            self.files = earlier
            self._say(1, f"report of {counted(len(self.files), 'image')}: there already")
        else:
            self._say(1, f"report of {counted(len(self.files), 'image')} in {to_text(self.folder)}")
            key = self._report_key(self.files)
            self.state.forget("report")
            found = stages.make_report(self.folder, self.output, self.options)
            self.state.finish("report", key, found)
        self.ranked, self.unreadable = found["ranked"], found["unreadable"]
        self.largest_value = found.get("largest_value", EIGHT_BITS)

    def choose(self, decisions: Mapping[str, str], share: float) -> None:
        """Choose what is set aside, and write the list.

        Args:
            decisions: Verdicts of a person, by name.
            share: Share of the most suspicious images.

        Raises:
            ValueError: If too few images are left.
        """
        links = linked_names(self.folder, self.files)
        chosen = choose(self.files, self.ranked, self.unreadable, decisions, share, links)
        # What is not there any more cannot be trained on
        self.reasons = chosen | {name: entry["reason"] for name, entry in self.moved.items()}
        self._list_set_aside()
        counts = Counter(_kind(reason) for reason in self.reasons.values())
        kinds = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
        self._say(2, f"set aside {counted(len(self.reasons), 'image')} ({kinds})" if kinds else "nothing to set aside")
        gone = len([name for name in decisions if name not in self.files])
        if gone:
            sys.stdout.write(f"      {counted(gone, 'image')} with a decision: not in the folder any more.\n")
        if len(self.training) < FEWEST_IMAGES:
            msg = f"Only {len(self.training)} of {len(self.files)} images are left to train on. Set fewer aside."
            raise ValueError(msg)

    @property
    def training(self) -> list[str]:
        """Names of the images to train on."""
        return sorted(name for name in self.ranked if name not in self.reasons)

    def fit(self, false_alarms: float) -> None:
        """Train and set the threshold.

        Args:
            false_alarms: Share of normal images that may be called anomalous.
        """
        contents = [[name, self.files[name]] for name in self.training]
        options = self.options
        settings = [*self._settings(), self.largest_value]
        key = key_of(settings, str(self.folder), contents, options.model, options.model_options)
        self.fit_key = key_of(key, false_alarms)
        found = self.state.finished("fit", key)
        if found is None or "facts" not in found or not (self.output / CHECKPOINT).is_file():
            self._say(3, f"fit on {counted(len(contents), 'image')}")
            self.state.forget("fit")
            paths = [self.folder / name for name in self.training]
            found = stages.fit(paths, self.output, options, false_alarms, self.largest_value)
            self.state.finish("fit", key, found | {"false_alarms": false_alarms})
        elif found["false_alarms"] == false_alarms:
            self._say(3, f"fit on {counted(len(contents), 'image')}: there already")
        else:
            self._say(3, f"fit on {counted(len(contents), 'image')}: there already, but for the threshold")
            self.state.finish(
                "fit", key, found | {"false_alarms": None}
            )  # while the checkpoint has the one or the other
            found = found | {"threshold": stages.set_threshold(self.output, found, false_alarms)}
            self.state.finish("fit", key, found | {"false_alarms": false_alarms})
        self.threshold = found["threshold"]
        facts = FitFacts(**found["facts"])
        self.check = self_check(facts, self.threshold, false_alarms, found["scale"])
        show_self_check(self.output / REPORT, self.check.lines)

    def export(self, kind: str) -> None:
        """Export the model.

        Args:
            kind: ``none``, or what to export to.
        """
        latest = self.state.latest("export") or {}
        if kind == "none" and self.state.finished("export", key_of(self.fit_key, latest.get("kind"))) is not None:
            kind = latest["kind"]  # an earlier run has exported this very model
        key = key_of(self.fit_key, kind)
        found = self.state.finished("export", key)
        if kind == "none":
            self._say(4, "no export")
            found = {"files": []}
        elif found is not None and all((self.output / name).is_file() for name in found["files"]):
            self._say(4, f"export to {kind}: there already")
        else:
            self._say(4, f"export to {kind}")
            self.state.forget("export")
            found = {"kind": kind, **stages.export(self.output, kind)}
            self.state.finish("export", key, found)
        self.exported = found["files"]
        others = [name for name in EXPORTED if name not in self.exported and (self.output / name).is_file()]
        if others:
            sys.stdout.write(f"      {', '.join(others)}: of an earlier run, perhaps with another threshold.\n")

    def move(self, target: Path | None) -> None:
        """Move what was set aside.

        Args:
            target: Folder, ``None`` to leave all where it is.
        """
        transfers = [
            Transfer(self.folder / name, target / name)
            for name in self.reasons
            if target is not None and name not in self.moved
        ]
        if target is None or not transfers:
            self._say(5, "nothing to move")
            return
        self._say(5, f"move {counted(len(transfers), 'image')} to {to_text(target)}")
        moves = {
            transfer.source.relative_to(self.folder).as_posix(): str(Path(os.path.abspath(transfer.target)))  # noqa: PTH100
            for transfer in transfers
        }
        # Written down first: whatever becomes of this process, the next one knows what is gone, and where to
        self.moved |= {
            name: {"hash": self.files[name], "reason": self.reasons[name], "moved_to": place}
            for name, place in moves.items()
        }
        self.state.finish("move", "", {"moves": self.moved})
        move(transfers, target / MOVED)
        self._list_set_aside()
        undo = f"anomalib-softpatch undo {shlex.quote(to_text(target / MOVED))} --dry_run false"
        sys.stdout.write(f"      To bring them back: {undo}\n")

    def summarize(self, false_alarms: float, share: float) -> None:
        """Write and print the summary.

        Args:
            false_alarms: Share of normal images that may be called anomalous.
            share: Share of the most suspicious images that was set aside.
        """
        assert self.check is not None
        command = self._prediction()
        again = "the same command"  # its options belong to it
        next_steps = {
            TRUST: command,
            LOOK: f"{again} with --decisions decisions.csv",
            REFUSE: f"{again} with more images",
        }
        next_step = next_steps[self.check.verdict]
        page = self.output / REPORT / PAGE
        record = self._record(false_alarms, share, self.check.record | {"next": next_step})
        with atomic_output(self.output / SUMMARY) as temporary:
            temporary.write_text(json.dumps(record | {"next": command}, indent=2) + "\n", encoding="ascii")
        lines = [
            f"Trained on {len(self.training)} of {len(self.files)} images. Threshold {self.threshold:.4g} (0.5 once "
            "normalized).",
            *self.check.lines,
            *([f"Set aside: {self.output / SET_ASIDE}"] if self.reasons else []),
            f"Report:    {page} (decide in it, then use --decisions decisions.csv)",
            f"Summary:   {self.output / SUMMARY}",
            f"Features:  {self._feature_cache} (with them another run needs no backbone; can be deleted)",
            *([f"First:     {next_step}"] if self.check.verdict != TRUST else []),
            f"Next:      {command}",
        ]
        sys.stdout.write("\n".join([*lines, ""]))

    @property
    def _feature_cache(self) -> Path:
        """Folder of the features."""
        cache = self.options.extraction.feature_cache
        assert cache is not None
        return cache

    def _prediction(self) -> str:
        """Return the command that judges new images."""
        predicts = bool(self.exported) and self.exported[0].endswith(FOR_PREDICTION)
        file = self.output / (self.exported[0] if predicts else CHECKPOINT)
        option = "--model" if predicts else "--ckpt_path"
        return f"anomalib-softpatch predict NEW_IMAGES {option} {shlex.quote(str(file))}"

    def _record(self, false_alarms: float, share: float, check: dict[str, Any]) -> dict[str, Any]:
        """Return what the summary says of the run."""
        extraction = self.options.extraction
        return {
            "version": __version__,
            "folder": to_text(self.folder),
            "images": len(self.files),
            "set_aside": len(self.reasons),
            "trained_on": len(self.training),
            "model": self.options.model,
            "model_options": self.options.model_options,
            "backbone": extraction.backbone,
            "layers": extraction.layers,
            "image_size": extraction.size,
            "tiles": extraction.tiles,
            "neighborhood": self.options.neighborhood,
            "largest_value": self.largest_value,
            "share_set_aside": share,
            "false_alarms": false_alarms,
            "threshold": self.threshold,
            "self_check": check,
            "normalized_threshold": 0.5,
            "report": to_text(self.output / REPORT / PAGE),
            "checkpoint": to_text(self.output / CHECKPOINT),
            "exported": [to_text(self.output / name) for name in self.exported],
            "features": to_text(self._feature_cache),
        }

    def _settings(self) -> list[Any]:
        """What features and scores depend on beside the images."""
        extraction = self.options.extraction
        name = extraction.backbone
        assert name is not None
        files = find_source(name).files
        weights = inventory(files[0].parent, files) if files else {}
        sizes = [extraction.size, extraction.tiles]
        compared = [self.options.neighborhood, self.options.model_options.get("min_images")]
        return [__version__, name, weights, extraction.layers, *sizes, *compared]

    def _report_key(self, files: Mapping[str, str]) -> str:
        return key_of(self._settings(), str(self.folder), dict(files), *self.options.exports)

    def _list_set_aside(self) -> None:
        rows = []
        for name, reason in self.reasons.items():
            place = Path(self.moved[name]["moved_to"]) if name in self.moved else None
            rows.append(Row(self.folder / name, reason, place))
        write_set_aside(rows, self.output / SET_ASIDE)

    def _say(self, number: int, text: str) -> None:
        sys.stdout.write(f"[{number}/{STAGES}] {text}\n")
        sys.stdout.flush()


def _kind(reason: str) -> str:
    """Return what kind of reason it is, for counts."""
    if reason.startswith("exact copy"):
        return "exact copies"
    if reason.startswith("link to"):
        return "links"
    if reason.startswith("number "):
        return "most suspicious"
    return "decided" if reason.startswith("decided") else "unreadable"
