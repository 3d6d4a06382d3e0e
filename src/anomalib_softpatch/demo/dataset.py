# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A small inspection set in the layout of MVTec AD, made without any download.

Images are crops of the photograph of gravel that scikit-image installs with itself: training images of its left part,
test images of its right part. The defects are a piece of brick, dry grass, and an oily stain. Copies of some defective
test images are hidden among the training images: the protocol that the papers call "overlap".
"""

import csv
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import torch
from anomalib.data.utils.generators.perlin import generate_perlin_noise
from PIL import Image
from skimage.filters import gaussian
from skimage.measure import label
from skimage.morphology import convex_hull_image

from anomalib_softpatch.image_size import SIDE

CATEGORY = "gravel"
DEFECTS = ("brick", "grass", "stain")
HIDDEN_LIST = "hidden_defects.csv"

CROP_SIZE = 176  # pixels of the photographs, which are 512 x 512
BRICK_CROP_SIZE = 120  # a closer look, so that a fragment shows both brick and mortar
TRAIN_COLUMNS = (0, 300)  # of the gravel photograph
TEST_COLUMNS = (300, 512)


def make_dataset(
    root: Path,
    *,
    num_train: int = 40,
    num_test_good: int = 20,
    num_test_per_defect: int = 8,
    num_hidden: int = 6,
    seed: int = 0,
) -> Path:
    """Write the set to ``root/gravel``, and return that folder.

    The training folder then holds ``num_train + num_hidden`` images. Which of them are the hidden ones is written to
    ``hidden_defects.csv`` (columns ``train_image``, ``test_image``, ``mask``, relative to the file), which no model
    reads. The kinds of defects take turns among the hidden ones, copies of test images. The same seed gives the same
    images.

    Raises:
        FileExistsError: If ``root/gravel`` exists.
        ValueError: If a number of images is out of range.
    """
    numbers = {"num_train": num_train, "num_test_good": num_test_good, "num_test_per_defect": num_test_per_defect}
    for name, number in numbers.items():
        if number < 1:
            msg = f"{name} must be at least 1, got {number}."
            raise ValueError(msg)
    defective = num_test_per_defect * len(DEFECTS)
    if not 0 <= num_hidden <= defective:
        msg = f"num_hidden must be between 0 and the number of defective test images, {defective}, got {num_hidden}."
        raise ValueError(msg)

    photographs = load_photographs()
    category = root / CATEGORY
    category.mkdir(parents=True)
    train = [_make(photographs, (seed, 0, index), TRAIN_COLUMNS)[0] for index in range(num_train)]
    for index in range(num_test_good):
        _save(_make(photographs, (seed, 1, index), TEST_COLUMNS)[0], category / f"test/good/{index:03d}.png")
    hidden: list[tuple[str, str]] = []
    for index, (number, defect) in product(range(num_test_per_defect), enumerate(DEFECTS)):
        image, mask = _make(photographs, (seed, 2 + number, index), TEST_COLUMNS, defect)
        pair = (f"test/{defect}/{index:03d}.png", f"ground_truth/{defect}/{index:03d}_mask.png")
        _save(image, category / pair[0])
        _save(mask, category / pair[1])
        if len(hidden) < num_hidden:
            hidden.append(pair)
            train.append(image)
    _write_training_images(category, train, hidden, seed)
    return category


def _make(
    photographs: Mapping[str, np.ndarray], seed: tuple[int, ...], columns: tuple[int, int], defect: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Make an image of gravel and the mask of its defect, if it is to have one."""
    rng = np.random.default_rng(seed)
    image, mask = _crop(photographs["gravel"], rng, CROP_SIZE, columns), np.zeros((SIDE, SIDE), dtype=bool)
    if defect is not None:
        image, mask = add_defect(image, defect, photographs, rng)
    return _relight(image, rng), mask


def _write_training_images(
    category: Path, images: Sequence[np.ndarray], hidden: Sequence[tuple[str, str]], seed: int
) -> None:
    """Write the training images under file names that do not tell which are hidden, and the list of these, the last."""
    order = np.random.default_rng((seed, 5)).permutation(len(images))
    places = {int(source): place for place, source in enumerate(order)}
    names = [f"train/good/{places[source]:03d}.png" for source in range(len(images))]
    for name, image in zip(names, images, strict=True):
        _save(image, category / name)
    rows = [(name, *pair) for name, pair in zip(names[len(images) - len(hidden) :], hidden, strict=True)]
    with (category / HIDDEN_LIST).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("train_image", "test_image", "mask"), *rows])


def read_hidden(category: Path) -> list[dict[str, str]]:
    """Return the rows of ``hidden_defects.csv``, see :func:`make_dataset`, for the folder of the category."""
    with (category / HIDDEN_LIST).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load_photographs() -> dict[str, np.ndarray]:
    """Load the photographs of gravel, grass and brick that are installed with scikit-image.

    The files are read from the installed package itself: ``skimage.data.gravel()`` may fetch a file that is missing.

    Returns:
        Gray images of shape ``(512, 512)``, ``float32`` in [0, 1], by name.

    Raises:
        FileNotFoundError: If the installed scikit-image does not have them.
    """
    photographs = {}
    for name in ("gravel", "grass", "brick"):
        path = files("skimage") / "data" / f"{name}.png"
        if not path.is_file():
            msg = f"The installed scikit-image lacks the photograph {path}. Reinstall scikit-image from its wheel."
            raise FileNotFoundError(msg)
        with path.open("rb") as file:
            photographs[name] = np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255
    return photographs


def add_defect(
    image: np.ndarray, defect: str, photographs: Mapping[str, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put one of ``DEFECTS`` into a gray image of gravel, of shape ``(256, 256)`` and in [0, 1].

    Returns:
        The image with the defect, and its boolean mask, both of shape ``(256, 256)``.
    """
    if defect == "brick":
        mask = convex_hull_image(_blob(rng, area=(0.015, 0.04)))
        fragment = _crop(photographs["brick"], rng, BRICK_CROP_SIZE)
        shadow = gaussian(np.roll(mask, (5, 5), axis=(0, 1)).astype(np.float32), sigma=3)
        return _blend(image * (1 - 0.5 * shadow), fragment, mask, softness=0.8), mask
    if defect == "grass":
        mask = _blob(rng, area=(0.03, 0.07))
        blades = _crop(photographs["grass"], rng, CROP_SIZE)
        dry_blades = np.clip(0.5 + 1.5 * (blades - blades.mean()), 0, 1)  # paler than the lawn in the photograph
        return _blend(image, dry_blades, mask, softness=1.5), mask
    mask = _blob(rng, area=(0.025, 0.06))
    return _blend(image, 0.35 * image, mask, softness=3), mask


def _crop(
    photograph: np.ndarray, rng: np.random.Generator, size: int, columns: tuple[int, int] | None = None
) -> np.ndarray:
    """Cut a square of about ``size`` pixels at a random place, turn, mirror and resize it to the image size."""
    first, last = columns or (0, photograph.shape[1])
    side = round(size * rng.uniform(0.95, 1.05))
    top = rng.integers(photograph.shape[0] - side + 1)
    left = rng.integers(first, last - side + 1)
    crop = np.rot90(photograph[top : top + side, left : left + side], int(rng.integers(4)))
    if rng.integers(2):
        crop = crop[:, ::-1]
    resized = Image.fromarray(np.ascontiguousarray(crop)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(resized), 0, 1)


def _relight(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make the image up to 10 % brighter or darker, and up to 8 % brighter on one side."""
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
    slope = rng.uniform(0, 0.08) * (np.cos(direction) * x + np.sin(direction) * y)
    return np.clip(image * rng.uniform(0.9, 1.1) * (1 + slope), 0, 1)


def _blob(rng: np.random.Generator, area: tuple[float, float]) -> np.ndarray:
    """Draw a blob with a ragged outline: a disc of ``area`` (share of the image), distorted by Perlin noise."""
    radius = SIDE * np.sqrt(rng.uniform(*area) / np.pi)
    margin = round(1.3 * radius)
    center_y, center_x = rng.integers(margin, SIDE - margin, size=2)
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = 1 - np.hypot(y - center_y, x - center_x) / radius
    while True:
        with torch.random.fork_rng(devices=[]):  # the generator draws from torch's global state
            torch.manual_seed(int(rng.integers(2**31)))
            noise = generate_perlin_noise(SIDE, SIDE, scale=(8, 8), device=torch.device("cpu")).numpy()
        parts = label(disc + 0.9 * noise > 0)
        if parts.any():
            return parts == 1 + np.argmax(np.bincount(parts[parts > 0] - 1))


def _blend(image: np.ndarray, other: np.ndarray, mask: np.ndarray, softness: float) -> np.ndarray:
    """Lay ``other`` over ``image`` inside the mask, whose edge is smoothed by ``softness`` pixels (sigma)."""
    alpha = gaussian(mask.astype(np.float32), sigma=softness)
    return (1 - alpha) * image + alpha * other


def _save(image: np.ndarray, path: Path) -> None:
    """Write a gray image in [0, 1], or a boolean mask, as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(255 * np.asarray(image, dtype=np.float32)).astype(np.uint8)).save(path)
