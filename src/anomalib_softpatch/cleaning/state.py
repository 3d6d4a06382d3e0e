# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Files of a run's output folder, and the stages that are finished, so that another run can continue from there."""

import hashlib
import json
from pathlib import Path
from typing import Any

from anomalib_softpatch.files import atomic_output

REPORT = "report"
FEATURES = "features"
CHECKPOINT = "model.ckpt"
SET_ASIDE = "set_aside.csv"
SUMMARY = "summary.json"
FILE = "state.json"
WRITTEN_BY = "anomalib-softpatch clean-train"
FORMAT = 1


class State:
    """Finished stages of a run, each with the key of its inputs and with its result.

    Every change is written at once and as a whole: if the process is killed, the file has the old or the new state.

    Args:
        folder: Output folder of the run. If it has files in it, one must be the state of an earlier run.

    Raises:
        ValueError: If the folder has only other files in it, or was left by a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._content: dict[str, Any] = {"written_by": WRITTEN_BY, "format": FORMAT, "stages": {}}
        if not folder.exists():
            return
        if not folder.is_dir():
            msg = f"output={str(folder)!r} is a file. Give a folder."
            raise ValueError(msg)
        if self.file.is_file():
            self._content = _read(self.file)
        elif any(folder.iterdir()):
            msg = f"output={str(folder)!r} has files in it that are not from an earlier run. Give a new folder."
            raise ValueError(msg)

    def claim(self) -> None:
        """Write the file before any other, to mark the folder as this command's own."""
        if not self.file.exists():
            self._write()

    def finished(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return the result of a stage; ``None`` if it is not finished with this key, see :func:`key_of`."""
        entry = self._content["stages"].get(stage)
        return entry["result"] if entry and entry["key"] == key else None

    def latest(self, stage: str) -> dict[str, Any]:
        """Return the result of a stage, whatever its key; empty if it has never been finished."""
        entry = self._content["stages"].get(stage)
        return entry["result"] if entry else {}

    def finish(self, stage: str, key: str, result: dict[str, Any]) -> None:
        """Record that a stage is finished, with a result of plain data."""
        self._content["stages"][stage] = {"key": key, "result": result}
        self._write()

    def forget(self, stage: str) -> None:
        """Record that a stage is not finished, before its files are replaced."""
        self._content["stages"].pop(stage, None)
        self._write()

    def _write(self) -> None:
        with atomic_output(self.file) as temporary:  # JSON in ASCII can also hold names that are not Unicode
            temporary.write_text(json.dumps(self._content, indent=1) + "\n", encoding="ascii")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        own, newer = content["written_by"] == WRITTEN_BY, content["format"] > FORMAT
    except (ValueError, KeyError, TypeError):
        own, newer = False, False
    if newer:
        msg = f"{str(file)!r} was written by a newer version. Install that one, or give a new folder."
        raise ValueError(msg)
    if not own:
        msg = f"{str(file)!r} was not written by {WRITTEN_BY}. Give a new folder."
        raise ValueError(msg)
    return content


def key_of(*parts: Any) -> str:
    """Return a key for the inputs of a stage, given as plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
