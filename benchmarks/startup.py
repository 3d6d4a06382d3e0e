# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Cost of the installed package in every start of Python: its start-up line, and a whole start with and without it.

    python benchmarks/startup.py

Times are the shortest of many, so that other work on the machine does not count.
"""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

LINE = "anomalib_softpatch.pth"
REPETITIONS = 200
STARTS = 20


def main() -> None:
    """Measure and print."""
    installed = Path(sysconfig.get_path("purelib"), LINE)
    path = installed if installed.is_file() else Path(__file__).parents[1] / "src" / LINE
    print(f"Python {sys.version.split()[0]}, {path}")
    print(f"start-up line:           {1e6 * time_line(path.read_text()):8.0f} microseconds")
    for name, value in (("with the line", "1"), ("without (AUTOLOAD=0)", "0")):
        print(f"start, {name + ':':22} {1e6 * time_start(value):5.0f} microseconds")


def time_line(line: str) -> float:
    """Run the line many times, each time as if for the first time; return the seconds of the fastest run."""
    finders = [finder for finder in sys.meta_path if type(finder).__name__ != "ImportWatcher"]
    durations = []
    for _ in range(REPETITIONS):
        sys.meta_path[:] = finders
        for folder in [folder for folder in sys.path_importer_cache if "site-packages" in folder]:
            del sys.path_importer_cache[folder]  # at its start, Python has not read this folder yet
        for name in [name for name in sys.modules if name.startswith("anomalib_softpatch")]:
            del sys.modules[name]
        start = time.perf_counter()
        exec(line)  # as Python does with a .pth file
        durations.append(time.perf_counter() - start)
        if len(sys.meta_path) != len(finders) + 1:
            msg = "The start-up line has not registered the package."
            raise RuntimeError(msg)
    return min(durations)


def time_start(autoload: str) -> float:
    """Start Python with and without the line; return the seconds of the fastest start."""
    environment = {**os.environ, "ANOMALIB_SOFTPATCH_AUTOLOAD": autoload}
    durations = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True)
        durations.append(time.perf_counter() - start)
    return min(durations)


if __name__ == "__main__":
    main()
