# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Image files that arrive in a folder, each given once, when it is complete.

The folder is listed again and again, because network drives, which cameras often write to, do not report changes.
"""

from dataclasses import dataclass
from pathlib import Path

from anomalib_softpatch.images.finding import LINKED_FOLDER, list_files

SETTLED = 1.0  # seconds without a change after which a file counts as complete
GIVEN_UP = 10.0  # seconds without a change after which an unreadable file is not expected to become readable


@dataclass
class _File:
    """State of a file."""

    signature: tuple[int, int]  # size, and time of the last change
    since: float  # time at which the file was first seen with this signature
    done: bool = False


class Arrivals:
    """New and changed image files of a folder and its subfolders. Files that were removed are forgotten."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trouble = ""  # why the folder, or one in it, was not read the last time
        self._files: dict[Path, _File] = {}

    @property
    def waiting(self) -> int:
        """Number of files that are not done."""
        return sum(not file.done for file in self._files.values())

    def complete(self, now: float) -> list[Path]:
        """Return the files that have not changed for a while and are not done, in the order of their last changes.

        Args:
            now: Time in seconds, of a clock that only goes forward.
        """
        found = list_files(self.folder)
        troubles = [*found.unreadable, *((str(path), LINKED_FOLDER) for path in found.linked)]
        self.trouble = f"{troubles[0][0]}: {troubles[0][1]}" if troubles else ""
        # While a drive is disconnected its files are kept: they are not new when it is back
        files = dict(self._files) if found.unreadable else {}
        for path in found.images:
            try:
                status = path.stat()
            except OSError:  # removed meanwhile
                continue
            signature = (status.st_size, status.st_mtime_ns)
            known = self._files.get(path)
            files[path] = known if known and known.signature == signature else _File(signature, now)
        self._files = files
        settled = [
            path
            for path in found.images
            if path in files and not files[path].done and now - files[path].since >= SETTLED
        ]
        return sorted(settled, key=lambda path: (files[path].signature[1], path))

    def given_up(self, path: Path, now: float) -> bool:
        """Tell whether an unreadable file has not changed for so long that it will stay unreadable."""
        return now - self._files[path].since >= GIVEN_UP

    def done(self, path: Path) -> None:
        """Mark a file as done: it is not given again unless it changes."""
        self._files[path].done = True
