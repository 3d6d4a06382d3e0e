# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures that the tests share: small data, the external images and weights, and the `anomalib` command."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # set before torch is imported: threads do not speed up small tensors
# Set before ONNX Runtime is imported: its telemetry has threads, and can crash (microsoft/onnxruntime, issue 32173)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
from PIL import Image

from commands import Forker, spare_imports

# As in a terminal. A background process of a shell ignores the signal, and so would all processes that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# Images and weights that are not part of the project, see CONTRIBUTING.md
SHARED = Path(os.environ.get("ANOMALIB_SOFTPATCH_SHARED") or ROOT.parent / "shared").resolve()
# The code that pip writes into the script `anomalib`
ANOMALIB = "import sys; from anomalib.cli.cli import main; sys.argv[0] = 'anomalib'; sys.exit(main())"
COMMAND = "import sys; from anomalib_softpatch.cli import main; sys.exit(main())"
# Files that take a minute or more come first: a worker runs a whole file, and the others would wait for it at the end
LONG = (
    "test_measurements.py", "test_configs.py", "test_benchmark.py", "test_teach.py", "test_same_answer.py",
    "test_clean_train.py", "test_plugin.py", "test_export.py", "test_notebooks.py", "test_demo.py", "test_graph.py",
    "test_models.py", "test_compression.py", "test_distributed.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))  # keeps the order within each file


def pytest_collection_finish() -> None:
    spare_imports()


@pytest.fixture(scope="session")
def kolektor() -> Path:
    """Return the dataset root of the external inspection set, for the category `kolektor`."""
    root = SHARED / "datasets"
    if not (root / "kolektor").is_dir():
        pytest.skip(f"no inspection images at {root / 'kolektor'}: see ANOMALIB_SOFTPATCH_SHARED in CONTRIBUTING.md")
    return root


@pytest.fixture(scope="session")
def backbone() -> str:
    """Return the name of a backbone with real weights, for the layers `blocks.2` and `blocks.4`."""
    folder = SHARED / "backbones" / "mobilenetv2_100.coral_in1k"
    if not folder.is_dir():
        pytest.skip(f"no backbone weights at {folder}: see ANOMALIB_SOFTPATCH_SHARED in CONTRIBUTING.md")
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def mvtec_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a dataset root with a small category `bottle` in MVTec AD's layout: gray noise, black squares as defects."""
    root = tmp_path_factory.mktemp("mvtec") / "MVTecAD"
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 8), ("test/good", 4), ("test/broken_small", 4)):
        for index in range(count):
            pixels = rng.integers(100, 156, (64, 64, 3), dtype=np.uint8)
            mask = np.zeros((64, 64), dtype=np.uint8)
            if folder == "test/broken_small":
                mask[16:40, 24:48] = 255
                save(mask, root / "bottle" / "ground_truth" / "broken_small" / f"{index:03}_mask.png")
            pixels[mask > 0] = 0
            save(pixels, root / "bottle" / folder / f"{index:03}.png")
    return root


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python in a new process. If the process fails, the test fails with its output.

    Arguments are those of Python. `cwd` is the working folder, `python` the interpreter (default: the one that runs the
    tests), and `env` has additional environment variables. With `check=False`, the process may fail.
    """

    def run(
        *arguments: object,
        cwd: Path,
        python: str | Path = sys.executable,
        env: dict[str, str] | None = None,
        timeout: float = 500,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [python, *map(str, arguments)],
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return succeeded(result) if check else result

    return run


def environment(more: dict[str, str] | None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "ANOMALIB_SOFTPATCH_AUTOLOAD"}
    return {**inherited, **(more or {})}


def succeeded(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if result.returncode:
        pytest.fail(f"exit status {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}")
    return result


@pytest.fixture(scope="session")
def run_forked(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return a function like `run_python` whose process has already imported torch and Anomalib.

    `commands.py` explains which tests need a fresh interpreter instead.
    """
    forker = Forker() if hasattr(os, "fork") else None

    def run(
        *arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 500, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        if forker is None:
            return run_python(*arguments, cwd=cwd, env=env, timeout=timeout, check=check)
        result = forker.run(*arguments, cwd=cwd, env=environment(env), timeout=timeout)
        return succeeded(result) if check else result

    yield run
    if forker is not None:
        forker.close()


@pytest.fixture(scope="session")
def distributions(
    tmp_path_factory: pytest.TempPathFactory, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> Path:
    """Build the sdist and a wheel from it, with the tool that builds the releases, and return their folder."""
    folder = tmp_path_factory.mktemp("distributions")
    run_python("-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)  # nothing is downloaded
    return folder


@pytest.fixture(scope="session")
def run_anomalib(
    run_forked: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the stock `anomalib` command. Its keyword arguments are those of `run_forked`."""

    def run(*arguments: object, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return run_forked("-c", ANOMALIB, *arguments, cwd=cwd, **kwargs)

    return run


@pytest.fixture(scope="session")
def run_browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that opens a file in a headless browser, without a network, and returns its output."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium in the PATH to open pages with")

    def run(page: Path, *arguments: str, width: int = 1280, height: int = 2000) -> str:
        options = (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", "--no-first-run", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path_factory.mktemp('profile')}", f"--window-size={width},{height}",
            "--virtual-time-budget=5000",
        )  # fmt: skip
        command = [browser, *options, *arguments, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run
