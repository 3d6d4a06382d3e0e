# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The figure at the end of the demo: test images, their true defects and the heat maps of several models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from anomalib.data.utils import read_image
from anomalib.models.components import AnomalibModule
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anomalib_softpatch.demo.dataset import DEFECTS, read_hidden

COLUMN_INCHES = 1.75
ROW_LABEL_INCHES = 2.2
HEADER_INCHES = 1.25
REDDEST = 0.999  # share of the pixels of good images below the score that is drawn in the darkest red


class Example(NamedTuple):
    """A test image of the figure, its mask (``None`` for a normal image), and what to write above it."""

    image: Path
    mask: Path | None
    title: str


def choose_examples(category: Path) -> list[Example]:
    """Choose test images by a fixed rule: the first and the last one of every kind of defect, and the first good one.

    The first ones are those of which a copy is hidden among the training images; the last ones are not, unless nearly
    all are.
    """
    hidden = {row["test_image"] for row in read_hidden(category)}
    examples = []
    for defect in DEFECTS:
        images = sorted((category / "test" / defect).iterdir())
        for image in dict.fromkeys((images[0], images[-1])):
            mask = category / "ground_truth" / defect / f"{image.stem}_mask.png"
            where = "hidden in training" if f"test/{defect}/{image.name}" in hidden else "only in test"
            examples.append(Example(image, mask, f"{defect}\n{where}"))
    examples.append(Example(min((category / "test" / "good").iterdir()), None, "good\nno defect"))
    return examples


@torch.no_grad()
def anomaly_maps(model: AnomalibModule, images: Sequence[Path]) -> np.ndarray:
    """Compute the heat maps of some images of one size, before any normalization.

    Returns:
        Maps of shape ``(len(images), height, width)``.
    """
    model.eval()
    batch = torch.stack([cast("torch.Tensor", read_image(path, as_tensor=True)) for path in images])
    assert model.pre_processor is not None
    prediction = model.model(model.pre_processor(batch.to(model.device)))
    return prediction.anomaly_map.reshape(len(images), *prediction.anomaly_map.shape[-2:]).cpu().numpy()


def relative_scores(maps: np.ndarray, good_maps: np.ndarray) -> np.ndarray:
    """Express the scores of a model by what good images get from it, so that maps of several models can be compared.

    A model's scores have a scale of their own. Stretched between its lowest and highest ones, a map would look fainter
    the more strongly the model scores the defects of other images.

    Returns:
        Shape of ``maps``, (images, height, width): 0 for the median score of a pixel of good images, 1 for the score
        that one in a thousand exceeds.
    """
    low, high = np.quantile(good_maps, (0.5, REDDEST))
    return (maps - low) / (high - low)


def draw_figure(
    examples: Sequence[Example], maps: Mapping[str, np.ndarray], title: str, subtitle: str, path: Path
) -> None:
    """Draw images, true defects and heat maps below each other, and save the figure as a PNG file.

    Args:
        examples: The test images, one a column.
        maps: Relative scores (see :func:`relative_scores`) by the label of their row, each of shape
            ``(len(examples), height, width)``, drawn from 0 (pale) to 1 (red).
        title: Title of the figure.
        subtitle: Smaller line below the title.
        path: File to write.
    """
    rows = 2 + len(maps)
    width = ROW_LABEL_INCHES + COLUMN_INCHES * len(examples)
    height = HEADER_INCHES + COLUMN_INCHES * rows
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.15 / height, title, fontsize=15, ha="center", va="top")
    figure.text(0.5, 1 - 0.45 / height, subtitle, fontsize=11, ha="center", va="top", color="dimgray")
    grid = figure.add_gridspec(
        rows,
        len(examples),
        left=ROW_LABEL_INCHES / width,
        right=1 - 0.1 / width,
        top=1 - HEADER_INCHES / height,
        bottom=0.1 / height,
        wspace=0.05,
        hspace=0.05,
    )
    for column, example in enumerate(examples):
        image = read_image(example.image)
        mask = np.zeros(image.shape[:2]) if example.mask is None else read_image(example.mask)[..., 0]
        for row in range(rows):
            axes = figure.add_subplot(grid[row, column])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.imshow(image)
                axes.set_title(example.title, fontsize=11)
            elif row == 1:
                axes.imshow(mask, cmap="gray", vmin=0, vmax=1)
            else:
                values = list(maps.values())[row - 2]
                axes.imshow(values[column], cmap="YlOrRd", vmin=0, vmax=1)
                if mask.any():
                    axes.contour(mask, levels=[0.5], colors="black", linewidths=1)
            if column == 0:
                label = ["image", "true defect", *maps][row]
                axes.set_ylabel(label, fontsize=12, rotation=0, ha="right", va="center", labelpad=8)
    figure.savefig(path)
