# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The stages of the demo: a set of images, three models, a table, and heat maps."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Patchcore
from lightning import seed_everything
from matplotlib.figure import Figure
from PIL import Image

from anomalib_softpatch.backbones import Backbone
from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.demo.dataset import CATEGORY, DEFECTS, check_numbers, make_dataset
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.integration.quiet import quiet
from anomalib_softpatch.models import SoftPatch, SoftPatchPlus

MODELS = {"PatchCore": Patchcore, "SoftPatch": SoftPatch, "SoftPatchPlus": SoftPatchPlus}
OPTIONS: dict[str, Any] = {"coreset_sampling_ratio": 0.01, "num_neighbors": 1, "visualizer": False}
QUIETLY: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
REDDEST = 0.999  # the darkest red starts at the score that this share of the pixels of good images is below


def run_demo(output: Path, backbone: Backbone, num_train: int, num_hidden: int, seed: int) -> None:
    """Run the demo with the options of :func:`anomalib_softpatch.demo.demo`. A failed run leaves no table.

    Raises:
        ValueError: If an option is out of range, or timm does not know the backbone.
        RuntimeError: If the weights of the backbone cannot be obtained.
    """
    PatchFeatureExtractor(backbone.name, backbone.layers)  # refuses unusable options before anything is written
    check_numbers(num_train=num_train, num_hidden=num_hidden)
    folder = _new_folder(output)
    _say(f"{num_train} training images of gravel, with {num_hidden} defective images hidden among them: {folder}")
    images = make_dataset(folder, num_train=num_train, num_hidden=num_hidden, seed=seed)
    examples = {}
    for kind, index in product(DEFECTS, (0, -1)):
        files = sorted((images / "test" / kind).iterdir())
        number = (index % len(files)) * len(DEFECTS) + DEFECTS.index(kind)
        place = "hidden in training" if number < num_hidden else "only in test"
        examples[f"{kind}/{files[index].stem}\n{place}"] = files[index]
    good = sorted((images / "test" / "good").iterdir())
    examples["good\nno defect"] = good[0]
    rows, maps = {}, {}
    for name, model_class in MODELS.items():
        _say(f"Training and testing {name}")
        data = MVTecAD(root=folder, category=CATEGORY, num_workers=0)
        engine = Engine(default_root_dir=folder / "results", **QUIETLY)
        own = {} if model_class is Patchcore else {"seed": seed}  # Anomalib's model uses the global seed
        with quiet():
            seed_everything(seed)
            model = model_class(backbone=backbone.name, layers=backbone.layers, **OPTIONS, **own)
            engine.fit(model, datamodule=data)
            (metrics,) = engine.test(model, datamodule=data, verbose=False)
        rows[name] = {metric: 100 * metrics[f"{metric}_AUROC"] for metric in ("image", "pixel")}
        low, high = np.quantile(anomaly_maps(model, good), (0.5, REDDEST))
        auroc = "\n".join(f"{metric} AUROC {value:.1f} %" for metric, value in rows[name].items())
        maps[f"{name}\n\n{auroc}"] = (anomaly_maps(model, list(examples.values())) - low) / (high - low)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("AUROC in %")
    title = f"Trained on {num_train + num_hidden} images, of which {num_hidden} have a hidden defect"
    with atomic_output(folder / "heat_maps.png") as path:
        draw_figure(examples, maps, title).savefig(path)
    with atomic_output(folder / "results.csv") as path:
        table.to_csv(path)
    _say(table.round(1).reset_index().to_string(index=False))
    _say(f"Table:     {folder / 'results.csv'}\nHeat maps: {folder / 'heat_maps.png'}")
    _say("Next:      anomalib-softpatch clean-train FOLDER, with a folder of your own images")


def _new_folder(output: Path) -> Path:
    """Make the first folder of ``run-001``, ``run-002``, ... that does not exist yet."""
    numbers = count(1)
    while True:
        folder = output / f"run-{next(numbers):03d}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


@torch.no_grad()
def anomaly_maps(model: Patchcore | SoftPatch, images: Sequence[Path]) -> np.ndarray:
    """Compute the anomaly maps of image files of one size, shape ``(n, height, width)``, without normalization."""
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255 for path in images])
    assert model.pre_processor is not None
    batch = model.pre_processor(torch.from_numpy(pixels).movedim(3, 1))
    return model.eval().cpu().model(batch).anomaly_map[:, 0].numpy()


def draw_figure(examples: Mapping[str, Path], maps: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw images and, below each of them, its heat maps with the outline of the true defect.

    Args:
        examples: Files of test images by their titles.
        maps: Scores by the label of their row, each of shape ``(len(examples), height, width)``; 0 is pale, 1 is red.
        title: Title of the figure.
    """
    figure = Figure(figsize=(2.2 + 1.75 * len(examples), 1.2 + 1.75 * (1 + len(maps))), dpi=120, layout="compressed")
    subtitle = "pale: median of good images, dark red: above 99.9 % of their pixels; true defects outlined"
    figure.suptitle(f"{title}\n{subtitle}")
    axes = figure.subplots(1 + len(maps), len(examples))
    for column, (name, file) in enumerate(examples.items()):
        mask = file.parents[2] / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
        axes[0, column].imshow(Image.open(file), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(name)
        for row, (label, values) in enumerate(maps.items(), start=1):
            axes[row, column].imshow(values[column], cmap="YlOrRd", vmin=0, vmax=1)
            axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center")
            if mask.is_file():
                axes[row, column].contour(np.asarray(Image.open(mask)), levels=[127], colors="black", linewidths=1)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    return figure


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
