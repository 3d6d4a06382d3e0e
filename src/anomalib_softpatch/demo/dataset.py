# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A small inspection set in the layout of MVTec AD, made without any download.

The images are crops of a photograph of gravel that is installed with scikit-image: training images from its left part,
test images from its right part. The defects are a piece of brick, dry grass, and an oily stain. Copies of some
defective test images are hidden among the training images: the protocol that the papers call "overlap".
"""

from collections.abc import Mapping
from importlib.resources import files
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
PHOTOGRAPHS = ("gravel", "grass", "brick")
CROP_SIZE, BRICK_CROP_SIZE = 176, 120  # pixels of the photographs, which are 512 x 512
TRAIN_COLUMNS, TEST_COLUMNS = (0, 300), (300, 512)  # of the gravel photograph


def make_dataset(
    root: Path,
    *,
    num_train: int = 40,
    num_test_good: int = 20,
    num_test_per_defect: int = 8,
    num_hidden: int = 6,
    seed: int = 0,
) -> Path:
    """Write the set to ``root/gravel``.

    Args:
        root: Folder of the set.
        num_train: Number of normal training images.
        num_test_good: Number of normal test images.
        num_test_per_defect: Number of test images with each kind of defect.
        num_hidden: Number of additional training images, the last ones, that are copies of the first defective test
            images. The kinds of defects alternate.
        seed: Seed of the images.

    Returns:
        The folder of the category.

    Raises:
        FileExistsError: If ``root/gravel`` exists.
        ValueError: If a number is out of range.
    """
    check_numbers(num_train, num_test_good, num_test_per_defect, num_hidden)
    defective = num_test_per_defect * len(DEFECTS)
    photographs = {}
    for name in PHOTOGRAPHS:  # skimage.data.gravel() might download a missing file
        with (files("skimage") / "data" / f"{name}.png").open("rb") as file:
            photographs[name] = np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255
    category = root / CATEGORY
    category.mkdir(parents=True)
    for part, count, columns in (("train", num_train, TRAIN_COLUMNS), ("test", num_test_good, TEST_COLUMNS)):
        for index in range(count):
            rng = np.random.default_rng((seed, int(part == "test"), index))
            image = _relight(_crop(photographs["gravel"], rng, CROP_SIZE, columns), rng)
            _save(image, category / f"{part}/good/{index:03d}.png")
    for number in range(defective):
        index, kind = divmod(number, len(DEFECTS))
        rng = np.random.default_rng((seed, 2 + kind, index))
        gravel = _crop(photographs["gravel"], rng, CROP_SIZE, TEST_COLUMNS)
        image, mask = add_defect(gravel, DEFECTS[kind], photographs, rng)
        image = _relight(image, rng)
        _save(image, category / f"test/{DEFECTS[kind]}/{index:03d}.png")
        _save(mask, category / f"ground_truth/{DEFECTS[kind]}/{index:03d}_mask.png")
        if number < num_hidden:
            _save(image, category / f"train/good/{num_train + number:03d}.png")
    return category


def check_numbers(num_train: int, num_test_good: int = 1, num_test_per_defect: int = 8, num_hidden: int = 0) -> None:
    """Refuse numbers of images that :func:`make_dataset` cannot make.

    Raises:
        ValueError: If a number is out of range.
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


def add_defect(
    image: np.ndarray, defect: str, photographs: Mapping[str, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put one of ``DEFECTS`` into a gray image of gravel in [0, 1], shape ``(256, 256)``.

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
        dry_blades = np.clip(0.5 + 1.5 * (blades - blades.mean()), 0, 1)  # paler than in the photograph
        return _blend(image, dry_blades, mask, softness=1.5), mask
    mask = _blob(rng, area=(0.025, 0.06))
    return _blend(image, 0.35 * image, mask, softness=3), mask


def _crop(
    photograph: np.ndarray, rng: np.random.Generator, size: int, columns: tuple[int, int] = (0, 512)
) -> np.ndarray:
    """Cut out a random square of about ``size`` pixels, rotate and mirror it, and resize it to the image size."""
    side = round(size * rng.uniform(0.95, 1.05))
    top = rng.integers(photograph.shape[0] - side + 1)
    left = rng.integers(columns[0], columns[1] - side + 1)
    crop = np.rot90(photograph[top : top + side, left : left + side], int(rng.integers(4)))
    crop = np.ascontiguousarray(crop[:, ::-1] if rng.integers(2) else crop)
    return np.clip(np.asarray(Image.fromarray(crop).resize((SIDE, SIDE), Image.Resampling.BICUBIC)), 0, 1)


def _relight(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make an image up to 10 % brighter or darker, with a gradient of up to 8 % in a random direction."""
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
    slope = rng.uniform(0, 0.08) * (np.cos(direction) * x + np.sin(direction) * y)
    return np.clip(image * rng.uniform(0.9, 1.1) * (1 + slope), 0, 1)


def _blob(rng: np.random.Generator, area: tuple[float, float]) -> np.ndarray:
    """Return a mask with a ragged outline: a disk of ``area`` (share of the image), distorted by Perlin noise."""
    radius = SIDE * np.sqrt(rng.uniform(*area) / np.pi)
    margin = round(1.3 * radius)
    center_y, center_x = rng.integers(margin, SIDE - margin, size=2)
    y, x = np.mgrid[:SIDE, :SIDE]
    disk = 1 - np.hypot(y - center_y, x - center_x) / radius
    while True:
        with torch.random.fork_rng(devices=[]):  # Perlin noise is drawn from torch's global generator
            torch.manual_seed(int(rng.integers(2**31)))
            noise = generate_perlin_noise(SIDE, SIDE, scale=(8, 8), device=torch.device("cpu")).numpy()
        parts = label(disk + 0.9 * noise > 0)
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
