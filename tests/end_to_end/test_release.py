# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The files of a release are well formed and complete, and work outside of the source tree."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from anomalib_softpatch import __version__
from conftest import ROOT
from environments import Environment, Run

NAME = f"anomalib_softpatch-{__version__}"
SOME_TESTS = ("tests/unit/components/test_threshold.py", "tests/unit/components/test_fusion.py")


def test_files_are_well_formed_and_named_after_the_version(distributions: Path, run_python: Run) -> None:
    files = sorted(path.name for path in distributions.iterdir())
    assert files == [f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"]
    output = run_python("-m", "twine", "check", "--strict", *distributions.iterdir(), cwd=distributions).stdout
    assert output.count("PASSED") == len(files)


def test_changelog_has_the_version() -> None:
    assert f"## [{__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_sdist_has_the_files_of_git(distributions: Path) -> None:
    """Only files that serve the repository itself are left out."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git repository: it was made from an sdist")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(distributions / f"{NAME}.tar.gz") as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    missing = {name for name in tracked.splitlines() if not name.startswith(".") and (ROOT / name).exists()} - names
    assert not missing


def test_installed_outside_the_tree(distributions: Path, tmp_path: Path, run_python: Run) -> None:
    """Tests pass with the installed package, without the folder of its sources.

    The wheel is built from the sdist, so that installing the sdist gives the same files. `test_plugin.py` tests that
    Anomalib knows the models of an installed wheel.
    """
    (file,) = distributions.glob("*.whl")
    environment = Environment(tmp_path / "venv", run_python)
    environment.add_dependencies()
    environment.install(file)
    package = Path(environment.run("import anomalib_softpatch; print(anomalib_softpatch.__file__)").stdout.strip())
    assert package.is_relative_to(environment.path)

    with tarfile.open(distributions / f"{NAME}.tar.gz") as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    arguments = ("-E", "-m", "pytest", "-q", "-p", "no:cacheprovider", *SOME_TESTS)
    output = run_python(*arguments, cwd=tmp_path / NAME, python=environment.python).stdout
    assert " passed" in output.splitlines()[-1]


def test_wheel_from_the_tree_equals_that_from_the_sdist(distributions: Path, tmp_path: Path, run_python: Run) -> None:
    run_python("-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, cwd=ROOT)
    contents = []
    for folder in (distributions, tmp_path):
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist()})
    assert contents[0] == contents[1]
