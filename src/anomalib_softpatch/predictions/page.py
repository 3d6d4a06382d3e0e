# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The page of a prediction run: every image with its verdict, in the order in which people should decide about them.

This module imports torch, which takes seconds.
"""

import hashlib
import math
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomalib_softpatch.components.duplicates import duplicate_groups
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.images.hashing import hash_pixels
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.images.reading import UnreadableImageError, image_size
from anomalib_softpatch.pages.drawing import JPEG_QUALITY, TILE, difference, draw_pair
from anomalib_softpatch.pages.rendering import another_of_group, figure, render_page, shown_difference
from anomalib_softpatch.predictions.page_files import page_files
from anomalib_softpatch.predictions.predictor import Predictor
from anomalib_softpatch.predictions.table import UNREADABLE, Prediction, time_of_change
from anomalib_softpatch.report.geometry import visible_region

MOST_DIFFERENCES = 50  # only this many images at the top of the page are compared for copies
BORDERLINE_SHARE, MOST_BORDERLINE = 0.1, 20  # share and number of images on either side of the threshold
COLORED = 0.15  # distance from the threshold to the scores with the last and the first color of the heat map
SIDE, CELL = 32, 4  # pixels on a side of the small images that are compared to find near copies, and of their patches
GONE = "was removed or has changed since it was scored"
WORDS = {
    "anomalous": {"normal": "False alarm", "defect": "Confirm", "set_aside": "Set aside"},
    "normal": {"normal": "Confirm", "defect": "Missed defect", "set_aside": "Set aside"},
}


class PredictionPage:
    """Draws images while they are scored, and writes the page at the end.

    The page is next to the table of predictions (``output``) and shares its name. The drawings are in a folder next to
    it, where a later run finds them. The drawings of an earlier page stay until the new page is written.

    Raises:
        ValueError: If files of these names exist that are not from a page.
    """

    def __init__(self, output: Path) -> None:
        self.path, self.thumbnails = page_files(output)

    def draw(self, prediction: Prediction, anomaly_map: np.ndarray, predictor: Predictor) -> None:
        """Draw an image, given the model's prediction and anomaly map, of shape ``(height, width)``."""
        heat = torch.from_numpy(np.asarray(anomaly_map, dtype=np.float32)).nan_to_num()
        if math.isnan(prediction.threshold):  # without a threshold, the map's own maximum sets the scale
            heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
        else:
            heat = (heat - prediction.threshold) / (2 * COLORED) + 0.5
        assert prediction.x is not None
        assert prediction.y is not None
        try:
            covered = visible_region(predictor.transform, image_size(prediction.path))
            marked = (prediction.x, prediction.y)
            pair = draw_pair(prediction.path, heat, astuple(covered), predictor.largest_value, marked=marked)
        except (UnreadableImageError, OSError):  # removed since it was scored
            return
        _save(pair, self._thumbnail(prediction))

    def is_drawn(self, prediction: Prediction) -> bool:
        """Tell whether this or an earlier run has drawn an image."""
        return self._thumbnail(prediction).is_file()

    def write(self, predictions: Sequence[Prediction], model: Path, exported: bool, largest_value: int) -> None:
        """Write the page of all images. Those that were removed or have changed since are only listed.

        Args:
            predictions: Predictions of all images.
            model: Checkpoint or exported model.
            exported: Whether it is an exported model.
            largest_value: For reading images as the model does, see
                :func:`~anomalib_softpatch.images.reading.read_image`.
        """
        current: list[Prediction] = []
        gone: list[Prediction] = []
        for each in predictions:
            (current if each.modified == time_of_change(each.path) else gone).append(each)
        unreadable = [(each.path, each.reason) for each in current if each.verdict == UNREADABLE]
        scored = [each for each in current if each.verdict != UNREADABLE]
        files = [self._thumbnail(each) for each in scored]
        groups = near_copies(files)
        order, borderline = what_to_look_at(scored, groups)
        folder = self.path.parent
        root = os.path.commonpath([Path(each.path).parent for each in scored]) if scored else ""
        sizes = Counter(groups)
        numbers: dict[int, int] = {}  # groups of more than one image are numbered in the order of the page
        figures = []
        for rank, index in enumerate(order, start=1):
            each, group = scored[index], groups[index]
            thumbnail = f"{self.thumbnails.name}/{files[index].name}" if files[index].is_file() else None
            figures.append(
                figure(each.path, os.path.relpath(each.path, root), thumbnail, folder)
                | {
                    "rank": rank,
                    "image_score": each.score,
                    "verdict": each.verdict,
                    "words": WORDS.get(each.verdict),
                    "findings": ["borderline"] if rank <= borderline else [],
                    "duplicate_group": numbers.setdefault(group, len(numbers) + 1) if sizes[group] > 1 else None,
                }
            )
        wanted = {file.name for file in files}
        copies = another_of_group([shown["duplicate_group"] for shown in figures[:MOST_DIFFERENCES]])
        for place, other in copies.items():
            try:
                drawing, largest = difference(scored[order[place]].path, scored[order[other]].path, largest_value)
            except UnreadableImageError:  # one of them was removed meanwhile
                continue
            file = self.thumbnails / f"{files[order[place]].stem}_copy.jpg"
            _save(drawing, file)
            wanted.add(file.name)
            link = f"{self.thumbnails.name}/{file.name}"
            figures[place]["difference"] = shown_difference(link, figures[other]["name"], largest)
        thresholds = {each.threshold for each in scored if not math.isnan(each.threshold)}
        page = render_page(
            "anomalib_softpatch.predictions",
            "predictions.html.jinja",
            folder,
            figures,
            [("Files that could not be read", unreadable), ("Images left out", [(each.path, GONE) for each in gone])],
            model=to_text(model),
            checkpoint="model.ckpt" if exported else shlex.quote(str(model.absolute())),
            exported=exported,
            colored=COLORED,
            threshold=thresholds.pop() if thresholds else None,
            anomalous=sum(each.verdict == "anomalous" for each in scored),
            borderline=borderline,
        )
        with atomic_output(self.path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        for file in self.thumbnails.iterdir() if self.thumbnails.is_dir() else ():
            if file.name not in wanted:
                file.unlink()

    def _thumbnail(self, prediction: Prediction) -> Path:
        """Return the file of a drawing. It depends on the image's path and time of change, and on the model."""
        content = f"{to_text(prediction.path)}\n{prediction.modified}\n{prediction.model}"
        return self.thumbnails / f"{hashlib.sha256(content.encode()).hexdigest()[:20]}.jpg"


def what_to_look_at(predictions: Sequence[Prediction], groups: Sequence[int]) -> tuple[list[int], int]:
    """Return the order in which to look at images: first the borderline ones, then the others by score.

    Borderline images are those nearest to the threshold: on either side of it a tenth of all images, at least one and
    at most 20. Of each group of near copies, only one image is borderline.

    Returns:
        Indices of the images, the borderline ones first, and the number of borderline images.
    """
    most = min(MOST_BORDERLINE, math.ceil(BORDERLINE_SHARE * len(predictions)))
    chosen: list[int] = []
    seen: set[int] = set()
    left = {"anomalous": most, "normal": most}
    distances = [abs(each.score - each.threshold) for each in predictions]
    for index in sorted(range(len(predictions)), key=lambda index: (distances[index], predictions[index].path)):
        side = predictions[index].verdict
        if left.get(side, 0) and groups[index] not in seen:
            left[side] -= 1
            seen.add(groups[index])
            chosen.append(index)
    others = set(range(len(predictions))) - set(chosen)
    rest = sorted(others, key=lambda index: (-predictions[index].score, predictions[index].path))
    return [*chosen, *rest], len(chosen)


def near_copies(drawings: Sequence[Path]) -> list[int]:
    """Number the groups of images that are exact or near copies of each other.

    An exported model gives no features. Therefore, :func:`~anomalib_softpatch.components.duplicates.duplicate_groups`
    gets the pixels of small drawings, those of :func:`~anomalib_softpatch.pages.drawing.draw_pair`, in place of
    features. An image without a drawing is a group of its own.

    Returns:
        Number of each image's group.
    """
    there = [index for index, file in enumerate(drawings) if file.is_file()]
    groups = list(range(len(drawings), 2 * len(drawings)))
    if not there:
        return groups
    hashes, small = [], []
    for index in there:
        with Image.open(drawings[index]) as pair:
            image = pair.crop((0, 0, TILE, TILE))
        hashes.append(hash_pixels(np.asarray(image)))
        small.append(np.asarray(image.resize((SIDE, SIDE), reducing_gap=3.0), dtype=np.float32))
    cells = SIDE // CELL
    patches = torch.from_numpy(np.stack(small)).reshape(-1, cells, CELL, cells, CELL, 3)
    features = patches.transpose(2, 3).reshape(-1, cells, cells, 3 * CELL * CELL)
    for index, group in zip(there, duplicate_groups(hashes, features).tolist(), strict=True):
        groups[index] = group
    return groups


def _save(drawing: Image.Image, file: Path) -> None:
    with atomic_output(file) as temporary:
        drawing.save(temporary, "JPEG", quality=JPEG_QUALITY)
