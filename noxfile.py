# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Run the tests with the lowest and with the newest versions that ``pyproject.toml`` allows.

Needs ``pip install nox``, the Python versions below, the network, and some gigabytes of disk for each session::

    nox                                        # both sessions, all tests
    nox -s lowest -- tests/unit/integration    # some tests
    nox -s lowest --install-only               # set the environment up; -R then uses it again

A session that passes writes what it has tested to ``docs/results/tested_with.json``; ``make tables`` shows it in the
documents.
"""

import json
import platform
import re
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import nox

RECORD = Path("docs/results/tested_with.json")
RECORDED = ("anomalib", "torch", "torchvision", "timm", "lightning", "numpy", "safetensors")
VERSIONS = """
import json, platform, sys
from importlib.metadata import version
found = {name: version(name) for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version(), **found}))
"""

nox.options.sessions = ["lowest", "newest"]


@nox.session(python="3.10")
def lowest(session: nox.Session) -> None:
    """Test with the lower bounds of ``pyproject.toml``."""
    dependencies = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    bounds = (re.match(r"([\w-]+)>=([\d.]+)", dependency) for dependency in dependencies)
    session.install("-e", ".[test]", *(f"{bound[1]}=={bound[2]}" for bound in bounds if bound))
    run_tests(session)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Test with the newest versions that can be installed."""
    session.install("--upgrade", "-e", ".[test]")
    run_tests(session)


def run_tests(session: nox.Session) -> None:
    """Run the tests that were asked for, and record what they passed with."""
    report = Path(session.create_tmp()) / "junit.xml"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    if session.run("python", "-m", "pytest", f"--junitxml={report}", *session.posargs) is None:
        return  # --install-only
    counts = next(ElementTree.parse(report).iter("testsuite")).attrib
    tests, skipped = int(counts["tests"]), int(counts["skipped"])
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[session.name.split("-")[0]] = {
        "versions": json.loads(session.run("python", "-c", VERSIONS, *RECORDED, silent=True)),
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d"),
        "tests": " ".join(session.posargs) or "all",
        "passed": tests - skipped,
        "skipped": skipped,
        "commit": commit.stdout.strip(),
    }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
