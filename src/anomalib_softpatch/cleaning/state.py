# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What a run leaves in its output folder, and which stages it has finished, so that another run goes on from there."""

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
    """Finished stages of a run, each with the key of what it was made from, and its result.

    Every change is written at once and as a whole: a process that is killed leaves the file as it was before or after.

    Args:
        folder: Output folder of the run. One that holds anything must hold the file of an earlier run.

    Raises:
        ValueError: If the folder has files of others in it, or was left by a newer version.
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
            msg = f"output={str(folder)!r} has files in it that are not of an earlier run. Give a new folder."
            raise ValueError(msg)

    def claim(self) -> None:
        """Write the file before any other, so that the folder is known for this command's own."""
        if not self.file.exists():
            self._write()

    def finished(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return the result of a stage; ``None`` if it has not been finished with that key, see :func:`key_of`."""
        entry = self._content["stages"].get(stage)
        return entry["result"] if entry and entry["key"] == key else None

    def latest(self, stage: str) -> dict[str, Any]:
        """Return the result of a stage, whatever it was made from; empty if it has never been finished."""
        entry = self._content["stages"].get(stage)
        return entry["result"] if entry else {}

    def finish(self, stage: str, key: str, result: dict[str, Any]) -> None:
        """Write down that a stage is finished, with a result of plain data."""
        self._content["stages"][stage] = {"key": key, "result": result}
        self._write()

    def forget(self, stage: str) -> None:
        """Write down that a stage is not finished, before its files are replaced."""
        self._content["stages"].pop(stage, None)
        self._write()

    def _write(self) -> None:
        with atomic_output(self.file) as temporary:  # JSON in ASCII holds names that are no Unicode, too
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
    """Return a key of what a stage depends on, of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
