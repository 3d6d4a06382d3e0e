# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The image files that arrive in a folder, once each, when they are complete.

The folder is listed again and again: network drives, which cameras often write to, do not tell of changes.
"""

from dataclasses import dataclass
from pathlib import Path

from anomalib_softpatch.images.finding import LINKED_FOLDER, list_files

SETTLED = 1.0  # seconds without a change after which a file is taken for complete
GIVEN_UP = 10.0  # seconds without a change after which a file that cannot be read will not become one that can


@dataclass
class _File:
    """What is known of a file: size and time of its last change, since when it has had them, and if it is done."""

    signature: tuple[int, int]
    since: float
    done: bool = False


class Arrivals:
    """Image files of a folder and of all folders in it that are new or have changed.

    No more is remembered than there are files in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trouble = ""  # why the folder, or one in it, was not read at the last look
        self._files: dict[Path, _File] = {}

    @property
    def waiting(self) -> int:
        """Number of files that are not done."""
        return sum(not file.done for file in self._files.values())

    def complete(self, now: float) -> list[Path]:
        """Return the files that have not changed for a while and are not done, the one that was last changed last.

        Args:
            now: Time in seconds, of a clock that only goes forward.
        """
        found = list_files(self.folder)
        paths = found.images
        troubles = [*found.unreadable, *((str(path), LINKED_FOLDER) for path in found.linked)]
        self.trouble = f"{troubles[0][0]}: {troubles[0][1]}" if troubles else ""
        # While a drive is gone its files are not: they are no new ones when it is back
        files = dict(self._files) if found.unreadable else {}
        for path in paths:
            try:
                status = path.stat()
            except OSError:  # gone meanwhile
                continue
            signature = (status.st_size, status.st_mtime_ns)
            known = self._files.get(path)
            files[path] = known if known and known.signature == signature else _File(signature, now)
        self._files = files
        open_files = [path for path in paths if path in files and not files[path].done]
        settled = [path for path in open_files if now - files[path].since >= SETTLED]
        return sorted(settled, key=lambda path: (files[path].signature[1], path))

    def given_up(self, path: Path, now: float) -> bool:
        """Tell whether a file that cannot be read has been as it is for so long that it will stay so."""
        return now - self._files[path].since >= GIVEN_UP

    def done(self, path: Path) -> None:
        """Do not give a file again unless it changes."""
        self._files[path].done = True
