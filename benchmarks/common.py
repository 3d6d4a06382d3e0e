# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What the benchmarks share: real features to measure on, the clock, the memory and the machine."""

import argparse
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
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

from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.components.patch_features import pool_channels, unfold

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Images and weights that are not part of the project, see CONTRIBUTING.md
SHARED = Path(os.environ.get("ANOMALIB_SOFTPATCH_SHARED") or Path(__file__).resolve().parents[2] / "shared").resolve()
DATASETS = str(SHARED / "datasets")
BACKBONE = f"local-dir:{SHARED / 'backbones' / 'mobilenetv2_100.coral_in1k'}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks have."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--datasets", default=DATASETS, help="folder that holds kolektor/ in MVTec AD's layout")
    result.add_argument("--backbone", default=BACKBONE, help="MobileNetV2 with pre-trained weights")
    result.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    result.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    return result


def describe_machine() -> str:
    """Return one line: processor, threads, memory, load and versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    # glibc gives large temporaries back to the system unless these are set, which can cost most of the time.
    allocator = ", ".join(f"{name}={value}" for name, value in os.environ.items() if name.startswith("MALLOC_"))
    return (
        f"{processor}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, load {psutil.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, anomalib {anomalib.__version__}{allocator and f'; {allocator}'}"
    )


def print_table(
    headings: Sequence[str], rows: dict[str, Sequence[Sequence[dict[str, float]]]], keys: Sequence[str]
) -> None:
    """Print a Markdown table of means and standard deviations.

    Args:
        headings: Heading of the first column, then of each other one.
        rows: For each row its name and, for each column, the figures of the runs.
        keys: Which figures a cell shows, separated by slashes.
    """
    print(f"| {' | '.join(headings)} |\n|---|{'---:|' * (len(headings) - 1)}")
    for name, columns in rows.items():
        cells = [
            " / ".join(
                f"{np.mean([run[key] for run in runs]):.1f} ± {np.std([run[key] for run in runs]):.1f}" for key in keys
            )
            if runs
            else "n/a"
            for runs in columns
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def measure(function: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Return what a function returns, and its shortest wall-clock time in seconds over some repeats."""
    shortest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        shortest = min(shortest, time.perf_counter() - start)
    return result, shortest


class Identity:
    """Stands in for the random projection of KCenterGreedy where features come projected."""

    def fit(self, features: torch.Tensor) -> None:
        """Do nothing."""

    def transform(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return features


class PeakMemory:
    """Watch the resident memory of this process while a block runs.

    Pages of mapped files count as resident although the system may drop them at any time, so they are told apart.

    Attributes:
        peak: Largest resident memory without mapped files above that at the start, in bytes.
        peak_with_files: The same with the pages of mapped files.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self.interval = interval
        self.peak = self.peak_with_files = 0

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
            self.peak_with_files = max(self.peak_with_files, everything - self._start[1])
            if self._stop.wait(self.interval):
                return


def _run(queue: Queue, threads: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    queue.put(function(*arguments))


def in_process(threads: int, function: Callable, *arguments: Any) -> dict[str, Any]:
    """Call a function in a new process, so that memory is counted from nothing."""
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
    """Load the first images of some folders, normalised as ImageNet is.

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
    """Load up to 399 images of Kolektor: training set, normal test images, defective ones."""
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
def wide_features(datasets: str, backbone: str, count: int, subset: str = "train/good") -> torch.Tensor:
    """Return real patch features with as many dimensions as those of WideResNet50-2: 1,536.

    Five stages of MobileNetV2: their 488 channels averaged over 3 x 3 patches as PatchCore does, and the same channels
    with the 3 x 3 neighbourhood unfolded and pooled to the other 1,048 values.

    Returns:
        Shape ``(count * 1024, 1536)``.
    """
    extractor = PatchFeatureExtractor(backbone, [f"blocks.{stage}" for stage in (0, 1, 2, 4, 6)]).eval()
    rows = []
    for part in load_images([Path(datasets) / "kolektor" / subset], count).split(8):
        stages = extractor.backbone(part)
        grid = stages["blocks.2"].shape[-2:]
        average = [interpolate(extractor.average(stage), size=grid, mode="bilinear") for stage in stages.values()]
        unfolded = [unfold(interpolate(stage, size=grid, mode="bilinear")) for stage in stages.values()]
        average, unfolded = torch.cat(average, dim=1), torch.cat(unfolded, dim=1)
        wide = torch.cat((average, pool_channels(unfolded, 1536 - average.shape[1])), dim=1)
        rows.append(wide.permute(0, 2, 3, 1).reshape(-1, 1536))
    return torch.cat(rows)
