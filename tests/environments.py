# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Fresh virtual environments in which the project's own distributions are installed.

A path file gives them torch, Anomalib and the other dependencies from the environment that runs the tests. This
project, including its start-up line, comes only from the installed distribution.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


class Environment:
    """A fresh virtual environment.

    Args:
        path: Folder of the environment.
        run_python: The fixture of the same name.
    """

    def __init__(self, path: Path, run_python: Run) -> None:
        self.path = path
        self._run_python = run_python
        self._run_python("-m", "venv", "--without-pip", path, cwd=path.parent)
        self.python = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.site_packages = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())

    def run(self, code: str, *arguments: object, options: tuple[str, ...] = (), **kwargs: object) -> Result:
        kwargs.setdefault("cwd", self.path)
        # -E: the user's PYTHONPATH must not come before the installed packages
        return self._run_python("-E", *options, "-c", textwrap.dedent(code), *arguments, python=self.python, **kwargs)

    def pip(self, *arguments: object, env: dict[str, str] | None = None) -> None:
        pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--python", self.path)
        self._run_python(*pip, *arguments, cwd=self.path, env=env)

    def install(self, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", *arguments, env=env)

    def add_dependencies(self) -> None:
        (self.site_packages / "dependencies.pth").write_text("\n".join(dependency_folders()))

    def files(self) -> set[str]:
        return {str(path.relative_to(self.site_packages)) for path in self.site_packages.rglob("*")}

    @contextmanager
    def broken(self, module: str) -> Iterator[None]:
        """Replace a module of the package with one that fails, for the time of the context."""
        path = self.site_packages / "anomalib_softpatch" / module
        source = path.read_text()
        path.write_text("raise RuntimeError('broken on purpose')\n")
        try:
            yield
        finally:
            path.write_text(source)


def dependency_folders() -> list[str]:
    return [folder for folder in sys.path if Path(folder).name in {"site-packages", "dist-packages"}]
