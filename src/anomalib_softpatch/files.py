# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Writing result files so that a reader, or an interrupted run, never meets half of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, and move what was written to its place when the block ends without an error.

    Args:
        path: File to be written or replaced; its folder is made if need be.

    Yields:
        Temporary path on the same file system, with the same file name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        plain = Path(folder) / f"{path.name}.mode"
        plain.touch()
        temporary.chmod(plain.stat().st_mode)  # of a new file under the user's umask; some libraries make private ones
        temporary.replace(path)


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that nothing can be written to. Nothing is left behind.

    Args:
        folder: Folder, which need not exist.

    Raises:
        OSError: If nothing can be written there.
    """
    folder = Path(folder).absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with TemporaryDirectory(dir=existing, prefix="."):
            pass
    except OSError as error:
        msg = f"{str(folder)!r} cannot be written to: {error.strerror}. Give another folder."
        raise OSError(msg) from error
