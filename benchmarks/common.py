# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Functions that the benchmarks share: real features, time and memory measurements, and results files."""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import anomalib
import numpy as np
import psutil
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import normalize, resize, to_dtype, to_image

from anomalib_softpatch import __version__
from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.components.patch_features import pool_channels, unfold
from results import OWN, Rows, table

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Images and weights that are not part of the project, see CONTRIBUTING.md
SHARED = Path(os.environ.get("ANOMALIB_SOFTPATCH_SHARED") or Path(__file__).resolve().parents[2] / "shared").resolve()
DATASETS = str(SHARED / "datasets")
VERSIONS = ("anomalib", "torch", "torchvision", "timm", "numpy", "scikit-learn")
BACKBONE = f"local-dir:{SHARED / 'backbones' / 'mobilenetv2_100.coral_in1k'}"
# The commit of the running code, read at the start: the checkout may have changed when a benchmark ends
COMMIT = (
    subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    ).stdout.strip()
    or "unknown"
)  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks have."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--datasets", default=DATASETS, help="folder that holds kolektor/ in MVTec AD's layout")
    result.add_argument("--backbone", default=BACKBONE, help="MobileNetV2 with pre-trained weights")
    result.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    result.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    return result


def accuracy_parser(
    description: str | None, ratios: Sequence[float], sets: Sequence[str] = (), continues: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the arguments of the benchmarks that measure accuracy on noisy sets.

    Args:
        description: Docstring of the benchmark.
        ratios: Noise ratios to measure by default.
        sets: Sets to measure by default, for a benchmark of several sets, which continues its ``--save`` file.
        continues: Whether a benchmark of one set also continues its file.
    """
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--root", default=DATASETS, help="folder that holds the category in MVTec AD's layout")
    if sets:
        result.add_argument("--sets", nargs="+", default=list(sets), help="folders in --root, or sets that are made")
        result.add_argument("--elpv", type=Path, help="folder of the unpacked package elpv-dataset, for the set solar")
    else:
        result.add_argument("--category", default="kolektor")
    result.add_argument("--backbone", default=BACKBONE, help="timm's name, or local-dir:<folder>")
    result.add_argument("--layers", nargs="+", default=["blocks.2", "blocks.4"])
    result.add_argument("--image-size", type=int, default=256)
    result.add_argument("--ratios", type=float, nargs="+", default=list(ratios), help="noise ratios")
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    result.add_argument("--coreset", type=float, default=0.01)
    result.add_argument("--threads", type=int, default=torch.get_num_threads())
    result.add_argument(
        "--save",
        type=Path if sets or continues else new_file,
        help="JSON file to write all numbers to, see docs/results/",
    )
    return result


def new_file(name: str) -> Path:
    """Return the path of a new file, for argparse.

    Raises:
        argparse.ArgumentTypeError: If a file of this name exists, or if its folder does not.
    """
    path = Path(name)
    if path.exists():
        msg = f"{path} exists, and is not overwritten: give another name, or remove it."
        raise argparse.ArgumentTypeError(msg)
    if not path.absolute().parent.is_dir():
        msg = f"there is no folder {path.absolute().parent} for it: make it first."
        raise argparse.ArgumentTypeError(msg)
    return path


def describe_machine(versions: bool = True) -> str:
    """Return one line: processor, threads, memory, load and, if asked for, versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    threads = torch.get_num_threads()
    # Unless these are set, glibc returns large temporaries to the system, which can take most of the time.
    allocator = ", ".join(f"{name}={value}" for name, value in os.environ.items() if name.startswith("MALLOC_"))
    return (
        f"{processor}, {threads} thread{'s' * (threads > 1)} on {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, load {psutil.getloadavg()[0]:.1f}"
        + f"; torch {torch.__version__}, anomalib {anomalib.__version__}" * versions
        + (allocator and f"; {allocator}")
    )


def describe_command() -> str:
    """Return the command line, without paths of this machine."""
    arguments = [argument.replace(str(SHARED), "$ANOMALIB_SOFTPATCH_SHARED") for argument in sys.argv[1:]]
    save = arguments.index("--save") if "--save" in arguments else len(arguments)
    arguments[save : save + 2] = []
    arguments = [f'"{argument}"' if " " in argument else argument for argument in arguments]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def print_table(headings: Sequence[str], rows: Rows, keys: Sequence[str], medians: bool = False) -> None:
    """Print a Markdown table of means and spreads over runs, see :func:`results.table`."""
    print(table(headings, rows, keys, medians))


def save_results(
    path: Path | None,
    title: str,
    headings: Sequence[str],
    rows: Rows,
    keys: Sequence[str],
    medians: bool = False,
    commit: str = COMMIT,
) -> None:
    """Write the numbers of all runs, with command, machine and commit, into a file that the documents can show.

    The file appears when it is complete. It can be written again after every run.

    Args:
        path: JSON file; ``None`` writes none.
        title: What was measured, and on what: it is shown above the table.
        headings: Heading of the first column, then of each other one.
        rows: For each row its name and, for each column, the numbers of the runs; NaN is left out.
        keys: Numbers that a cell shows.
        medians: Show medians and ranges instead of means and standard deviations.
        commit: Commit that was measured; for a continued file, with the earlier commits.
    """
    if path is None:
        return
    record = {
        "title": title,
        "command": describe_command(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "machine": describe_machine(versions=False),
        "versions": {
            OWN: __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONS},
        },
        "headings": list(headings),
        "keys": list(keys),
        **({"medians": True} if medians else {}),
        "rows": {
            name: [
                [{key: round(float(value), 4) for key, value in run.items() if np.isfinite(value)} for run in column]
                for column in columns
            ]
            for name, columns in rows.items()
        },
    }
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def measure(function: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Return a function's result, and its shortest wall-clock time in seconds over some repeats.

    The time includes the work that it starts on a GPU.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    shortest = float("inf")
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        result = function()
        wait()
        shortest = min(shortest, time.perf_counter() - start)
    return result, shortest


def measure_processor(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return a function's result, and its processor time of all threads, in seconds."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


class Identity:
    """Replaces the random projection of KCenterGreedy if features are already projected."""

    def fit(self, features: torch.Tensor) -> None:
        """Do nothing."""

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return features


class PeakMemory:
    """Watch the resident memory of this process while a block runs.

    Pages of mapped files are counted separately: they are resident, but the system may drop them at any time.

    Attributes:
        peak: Largest increase of the resident memory without mapped files since the start, in bytes.
        peak_with_files: The same with the pages of mapped files.
        highest: Largest resident memory without mapped files, in bytes, including that at the start.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self.interval = interval
        self.peak = self.peak_with_files = self.highest = 0

    def __enter__(self) -> "PeakMemory":
        self._start = self._resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @staticmethod
    def _resident() -> tuple[int, int]:
        memory = psutil.Process().memory_info()
        return memory.rss - getattr(memory, "shared", 0), memory.rss

    def _watch(self) -> None:
        while True:
            own, everything = self._resident()
            self.peak = max(self.peak, own - self._start[0])
            self.highest = max(self.highest, own)
            self.peak_with_files = max(self.peak_with_files, everything - self._start[1])
            if self._stop.wait(self.interval):
                return


def _run(queue: Queue, threads: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    queue.put(function(*arguments))


def in_process(threads: int, function: Callable, *arguments: Any) -> dict[str, Any]:
    """Call a function in a new process, so that its memory is measured from the start."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_run, args=(queue, threads, function, arguments))
    process.start()
    process.join()
    if process.exitcode:
        msg = f"The process ended with status {process.exitcode}" + " (killed: out of memory?)" * (
            process.exitcode == -9
        )
        raise SystemExit(msg)
    return queue.get()


def load_images(folders: Sequence[Path], count: int, size: int = 256) -> torch.Tensor:
    """Load the first images of some folders, with ImageNet's normalization.

    Returns:
        Shape ``(count, 3, size, size)``.

    Raises:
        SystemExit: If there are fewer images.
    """
    paths = [path for folder in folders for path in sorted(folder.glob("*.png"))][:count]
    if len(paths) < count:
        msg = f"Found {len(paths)} of {count} images in {', '.join(map(str, folders))}: see --datasets."
        raise SystemExit(msg)
    images = []
    for path in paths:
        image = to_dtype(to_image(Image.open(path).convert("RGB")), torch.float32, scale=True)
        images.append(normalize(resize(image, [size, size], antialias=True), MEAN, STD))
    return torch.stack(images)


def kolektor_images(datasets: str, count: int, size: int = 256) -> torch.Tensor:
    """Load up to 399 images of Kolektor: training images, normal test images, then defective ones."""
    folder = Path(datasets) / "kolektor"
    return load_images([folder / "train" / "good", folder / "test" / "good", folder / "test" / "defect"], count, size)


@torch.no_grad()
def kolektor_features(datasets: str, backbone: str, count: int) -> torch.Tensor:
    """Return real patch features of PatchCore's kind: 128 channels of MobileNetV2 (blocks.2, blocks.4).

    Returns:
        Shape ``(count, 32, 32, 128)``.
    """
    extractor = PatchFeatureExtractor(backbone, ["blocks.2", "blocks.4"]).eval()
    images = kolektor_images(datasets, count)
    return torch.cat([extractor(part) for part in images.split(16)])


@torch.no_grad()
def wide_features(
    datasets: str,
    backbone: str,
    count: int,
    subset: str = "train/good",
    size: int = 256,
    patches: int | None = None,
) -> torch.Tensor:
    """Return real patch features with as many dimensions as those of WideResNet50-2: 1,536.

    They are made from five stages of MobileNetV2: the 488 channels averaged over 3 x 3 patches, as in PatchCore, and
    the same channels with the 3 x 3 neighborhood unfolded and pooled to the other 1,048 values.

    Args:
        datasets: Folder that holds ``kolektor/``.
        backbone: MobileNetV2.
        count: Number of images.
        subset: Folder of Kolektor.
        size: Height and width of the images.
        patches: Number of patches of each image, chosen at random. Default: all, ``(size / 8)^2``.

    Returns:
        Shape ``(count * patches, 1536)``.
    """
    generator = torch.Generator().manual_seed(0)
    extractor = PatchFeatureExtractor(backbone, [f"blocks.{stage}" for stage in (0, 1, 2, 4, 6)]).eval()
    rows = []
    for part in load_images([Path(datasets) / "kolektor" / subset], count, size).split(max(1, 8 * 256**2 // size**2)):
        stages = extractor.backbone(part)
        grid = stages["blocks.2"].shape[-2:]
        average = [interpolate(extractor.average(stage), size=grid, mode="bilinear") for stage in stages.values()]
        unfolded = [unfold(interpolate(stage, size=grid, mode="bilinear")) for stage in stages.values()]
        average, unfolded = torch.cat(average, dim=1), torch.cat(unfolded, dim=1)
        wide = torch.cat((average, pool_channels(unfolded, 1536 - average.shape[1])), dim=1)
        wide = wide.permute(0, 2, 3, 1).flatten(1, 2)
        if patches is not None:
            wide = wide[:, torch.randperm(wide.shape[1], generator=generator)[:patches]]
        rows.append(wide.flatten(0, 1))
    return torch.cat(rows)
