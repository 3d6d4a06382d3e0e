# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Synthetic sets, each made for one question, without a download, for ``robustness.py`` and ``noise_level.py``.

Every set is drawn anew, in the layout of MVTec AD:

- ``gravel``: the set of the demo, an aligned texture;
- ``plates``: milled metal plates with three holes, aligned up to a few pixels and a few degrees;
- ``turned plates``: the same plates in any direction;
- ``rare variant``: plates of which 5 % have a fourth hole, in training and among the good test images. Measured are the
  false alarms on this variant, in %, at the threshold that 5 % of the other good test images exceed;
- ``repeated defect``: plates with one defective image twelve times in training, each lit differently. The test images
  have the same defect, again lit differently, and good images;
- ``ten plates``: only ten good training images;
- ``two kinds``: half of the plates, in training and among the test images, have the fourth hole.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter
from skimage.draw import disk, line

from anomalib_softpatch.demo.dataset import _blob, _relight, _save, make_dataset
from anomalib_softpatch.image_size import SIDE

HALF = SIDE // 2
PLATE = (36, 84)  # half height and half width of the plate
HOLES = ((0, -56), (0, 0), (0, 56))
FOURTH_HOLE = (20, 28)
REPEATED = 12
RARE = 20  # one in so many
TRAIN, TEST = 120, 60


def plate(rng: np.random.Generator, *, any_direction: bool = False, fourth_hole: bool = False) -> np.ndarray:
    """Draw a plate on a dark, cloudy ground.

    Args:
        rng: Random number generator.
        any_direction: Rotate it by any angle; otherwise, by at most 2 degrees.
        fourth_hole: Draw the rare variant.

    Returns:
        Gray image in [0, 1], square.
    """
    rows, columns = np.mgrid[-HALF:HALF, -HALF:HALF]
    metal = (abs(rows) <= PLATE[0]) & (abs(columns) <= PLATE[1])
    milled = 0.65 + 0.06 * np.sin(rows / 1.7 + rng.uniform(0, 6)) + 0.03 * rng.standard_normal(rows.shape)
    body = np.where(metal, gaussian_filter(milled, 0.7), 0.0)
    for row, column in (*HOLES, *((FOURTH_HOLE,) if fourth_hole else ())):
        body[disk((HALF + row, HALF + column), 11)] = 0.02
    angle = rng.uniform(0, 2 * np.pi) if any_direction else np.deg2rad(rng.uniform(-2, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([HALF, HALF]) + rng.uniform(-4, 4, size=2)
    offset = np.array([HALF, HALF]) - turn @ center
    ground = 0.18 + 0.5 * gaussian_filter(rng.standard_normal(rows.shape), 8)
    alpha = affine_transform(metal.astype(float), turn, offset, order=1)
    return np.clip((1 - alpha) * ground + affine_transform(body, turn, offset, order=1), 0, 1)


def damage(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put a scratch, a stain or a chip of metal onto a plate.

    Returns:
        The image and the mask of the defect.
    """
    if kind == "scratch":
        mask = np.zeros(image.shape)
        row, column = HALF + rng.integers(-28, 28), HALF + rng.integers(-60, 20)
        mask[line(row, column, row + rng.integers(-24, 24), column + rng.integers(20, 48))] = 1
        alpha = np.clip(3 * gaussian_filter(mask, 1.2), 0, 1)
        return image + alpha * (0.95 - image), alpha > 0.2
    mask = np.roll(_blob(rng, area=(0.004, 0.012)), rng.integers(-20, 20), axis=1)
    alpha = gaussian_filter(mask.astype(float), 1.5)
    return image + alpha * ((0.35 * image if kind == "stain" else 0.9) - image), mask


def write_plates(
    category: Path,
    seed: int,
    *,
    any_direction: bool = False,
    fourth_hole: int = 0,
    repeated: bool = False,
    train: int = TRAIN,
) -> None:
    """Write a set of plates. One of ``fourth_hole`` plates has the fourth hole."""
    rare = fourth_hole == RARE

    def draw(number: int, group: int) -> np.ndarray:
        rng = np.random.default_rng((seed, group, number))
        hole = bool(fourth_hole) and number % fourth_hole == 0
        return _relight(plate(rng, any_direction=any_direction, fourth_hole=hole), rng)

    for number in range(train):
        _save(draw(number, 0), category / f"train/good/{number:03d}.png")
    for number in range(TEST * (4 if rare else 1)):
        variant = "variant" if rare and number % RARE == 0 else "common"
        _save(draw(number, 1), category / f"test/good/{variant}_{number:03d}.png")
    for number in range(TEST):
        kind = ("scratch", "stain", "chip")[number % 3]
        rng = np.random.default_rng((seed, 2, number if not repeated else 0))
        image, mask = damage(plate(rng, any_direction=any_direction), kind if not repeated else "stain", rng)
        image = _relight(image, np.random.default_rng((seed, 3, number)))
        if repeated and number < REPEATED:
            _save(image, category / f"train/good/defect_{number:03d}.png")
            continue
        _save(image, category / f"test/{kind}/{number:03d}.png")
        _save(mask, category / f"ground_truth/{kind}/{number:03d}_mask.png")


def write_holes(folder: Path, count: int, seed: int) -> list[Path]:
    """Write only plates with the fourth hole, and return their files."""
    files = [folder / f"{number:03d}.png" for number in range(count)]
    for number, file in enumerate(files):
        rng = np.random.default_rng((seed, 4, number))
        _save(_relight(plate(rng, fourth_hole=True), rng), file)
    return files


def write_gravel(category: Path, seed: int) -> None:
    """Write the demo's set without its hidden defects."""
    made = make_dataset(
        category.parent / "made", num_train=TRAIN, num_test_good=TEST, num_test_per_defect=TEST // 3, num_hidden=0,
        seed=seed,
    )  # fmt: skip
    made.rename(category)


# Function that draws each set, and whether noise is injected; the other sets are measured as they are
SETS: dict[str, tuple[Callable[[Path, int], None], bool]] = {
    "gravel": (write_gravel, True),
    "plates": (write_plates, True),
    "turned plates": (lambda folder, seed: write_plates(folder, seed, any_direction=True), True),
    "rare variant": (lambda folder, seed: write_plates(folder, seed, fourth_hole=RARE), False),
    "repeated defect": (lambda folder, seed: write_plates(folder, seed, repeated=True), False),
    "ten plates": (lambda folder, seed: write_plates(folder, seed, train=10), False),
    "two kinds": (lambda folder, seed: write_plates(folder, seed, fourth_hole=2), True),
}
