# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The stages of the demo: a set of images, three models, a table and their heat maps."""

import sys
from collections.abc import Mapping, Sequence
from itertools import count
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
from anomalib_softpatch.demo.dataset import CATEGORY, DEFECTS, make_dataset
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.integration.quiet import quiet
from anomalib_softpatch.models import SoftPatch, SoftPatchPlus

MODELS = {"PatchCore": Patchcore, "SoftPatch": SoftPatch, "SoftPatchPlus": SoftPatchPlus}
OPTIONS: dict[str, Any] = {"coreset_sampling_ratio": 0.01, "num_neighbors": 1, "visualizer": False}
QUIETLY: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
REDDEST = 0.999  # share of the pixels of good images below the score that is drawn in the darkest red


def run_demo(output: Path, backbone: Backbone, num_train: int, num_hidden: int, seed: int) -> None:
    """Run the demo with the options of :func:`anomalib_softpatch.demo.demo`; a run that fails leaves no table."""
    PatchFeatureExtractor(backbone.name, backbone.layers, pre_trained=False)  # refuses what timm does not know
    folder = next(path for number in count(1) if not (path := output / f"run-{number:03d}").exists())
    _say(f"{num_train} images of gravel to train with, and {num_hidden} with a defect hidden among them: {folder}")
    images = make_dataset(folder, num_train=num_train, num_hidden=num_hidden, seed=seed)
    good = sorted((images / "test" / "good").iterdir())
    examples = {  # of each kind of defect the first one, of which a copy is hidden, and the last one
        **{f"{kind}\n{where}": images / "test" / kind / f"{index:03d}.png" for kind in DEFECTS
           for where, index in (("hidden in training", 0), ("only in test", 7))},
        "good\nno defect": good[0],
    }  # fmt: skip
    _say(f"Backbone: {backbone.name}. {backbone.remark}")
    rows, maps = {}, {}
    for name, model_class in MODELS.items():
        _say(f"Training and testing {name}")
        data = MVTecAD(root=folder, category=CATEGORY, num_workers=0)
        engine = Engine(default_root_dir=folder / "results", **QUIETLY)
        with quiet():
            seed_everything(seed)
            model = model_class(backbone=backbone.name, layers=backbone.layers, **OPTIONS)
            engine.fit(model, datamodule=data)
            (metrics,) = engine.test(model, datamodule=data, verbose=False)
        rows[name] = {metric: 100 * metrics[f"{metric}_AUROC"] for metric in ("image", "pixel")}
        low, high = np.quantile(anomaly_maps(model, good), (0.5, REDDEST))
        auroc = "\n".join(f"{metric} AUROC {value:.1f} %" for metric, value in rows[name].items())
        maps[f"{name}\n\n{auroc}"] = (anomaly_maps(model, list(examples.values())) - low) / (high - low)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("AUROC in %")
    title = f"Trained on {num_train + num_hidden} images, of which {num_hidden} have a hidden defect"
    with atomic_output(folder / "heat_maps.png") as path:
        draw_figure(examples, maps, title, path)
    with atomic_output(folder / "results.csv") as path:
        table.to_csv(path)
    _say(table.round(1).reset_index().to_string(index=False))
    _say(f"Table:     {folder / 'results.csv'}\nHeat maps: {folder / 'heat_maps.png'}")
    _say("Next:      anomalib-softpatch clean-train FOLDER, with a folder of your images")


@torch.no_grad()
def anomaly_maps(model: Patchcore | SoftPatch, images: Sequence[Path]) -> np.ndarray:
    """Return the anomaly maps of images of one size, shape ``(n, height, width)``, before any normalization."""
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255 for path in images])
    assert model.pre_processor is not None
    batch = model.pre_processor(torch.from_numpy(pixels).movedim(3, 1))
    return model.eval().cpu().model(batch).anomaly_map[:, 0].numpy()


def draw_figure(examples: Mapping[str, Path], maps: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """Draw images by their titles, true defects, and below them maps by their labels, from 0 (pale) to 1 (red)."""
    figure = Figure(figsize=(2.2 + 1.75 * len(examples), 1.2 + 1.75 * (1 + len(maps))), dpi=120, layout="compressed")
    subtitle = "pale: median of good images, dark red: above 99.9 % of their pixels; true defects outlined"
    figure.suptitle(f"{title}\n{subtitle}")
    axes = figure.subplots(1 + len(maps), len(examples))
    for column, (name, file) in enumerate(examples.items()):
        mask = Path(str(file.with_stem(f"{file.stem}_mask")).replace("test", "ground_truth", 1))
        axes[0, column].imshow(Image.open(file), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(name)
        for row, (label, values) in enumerate(maps.items(), start=1):
            axes[row, column].imshow(values[column], cmap="YlOrRd", vmin=0, vmax=1)
            axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center")
            if mask.is_file():
                axes[row, column].contour(np.asarray(Image.open(mask)), levels=[127], colors="black", linewidths=1)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    figure.savefig(path)


def _say(text: str) -> None:
    sys.stdout.write(f"{text.strip()}\n")
    sys.stdout.flush()
