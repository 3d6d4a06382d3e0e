# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_softpatch.data.noise import MAX_ANGLE, MAX_SHIFT, largest_ratio, rotate_and_shift, select_noise

PATHS = [f"screw/test/{kind}/{number:03}.png" for kind in ("scratch", "Thread", "front") for number in range(4)]


def test_a_smaller_choice_is_the_start_of_a_larger_one() -> None:
    everything = select_noise(PATHS, 40, seed=3)
    for count in range(40):
        pd.testing.assert_frame_equal(select_noise(PATHS, count, seed=3), everything[:count], check_dtype=count > 0)


def test_every_image_comes_once_before_one_is_repeated() -> None:
    chosen = select_noise(PATHS, 30, seed=0)
    assert sorted(chosen["image_path"][:12]) == sorted(PATHS)
    assert sorted(chosen["image_path"][12:24]) == sorted(PATHS)
    assert list(chosen["repeat"]) == [0] * 12 + [1] * 12 + [2] * 6


def test_the_order_of_the_paths_does_not_matter() -> None:
    shuffled = random.Random(5).sample(PATHS, len(PATHS))
    pd.testing.assert_frame_equal(select_noise(shuffled, 20, seed=1), select_noise(PATHS, 20, seed=1))


def test_seeds_choose_differently() -> None:
    orders = {tuple(select_noise(PATHS, 12, seed)["image_path"]) for seed in range(5)}
    assert len(orders) == 5


def test_the_choice_is_the_same_in_every_version_and_on_every_platform() -> None:
    chosen = select_noise(["a", "b", "c", "d", "e"], 7, seed=0)
    assert list(chosen["image_path"]) == ["d", "c", "e", "b", "a", "d", "c"]
    assert tuple(chosen.loc[5, ["angle", "shift_x", "shift_y"]]) == (-0.57, 0.01703, -0.0118)


def test_each_repeat_is_moved_a_little_differently_and_originals_are_not_moved() -> None:
    chosen = select_noise(PATHS, 600, seed=0)
    first = chosen["repeat"] == 0
    motions = chosen[["angle", "shift_x", "shift_y"]]
    assert (motions[first] == 0).all(axis=None)
    repeated = motions[~first]
    assert len(repeated.drop_duplicates()) == len(repeated)
    limits = pd.Series({"angle": MAX_ANGLE, "shift_x": MAX_SHIFT, "shift_y": MAX_SHIFT})
    assert (repeated.abs() <= limits).all(axis=None)
    assert (repeated.max() > 0.9 * limits).all()
    assert (repeated.min() < -0.9 * limits).all()


def test_choosing_from_no_images_is_an_error_unless_the_count_is_zero() -> None:
    assert select_noise([], 0, seed=0).empty
    with pytest.raises(ValueError, match="count=3"):
        select_noise([], 3, seed=0)


def test_a_shift_goes_right_and_down() -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[5, 20] = 1
    moved = rotate_and_shift(mask, angle=0, shift_x=0.25, shift_y=0.1, is_mask=True)
    assert np.argwhere(moved).tolist() == [[7, 30]]


def test_a_positive_angle_rotates_counter_clockwise() -> None:
    mask = np.zeros((101, 101), np.uint8)
    mask[50, 90] = 1  # right of the center
    moved = rotate_and_shift(mask, angle=90, shift_x=0, shift_y=0, is_mask=True)
    assert np.argwhere(moved).tolist() == [[10, 50]]  # above the center


def test_image_and_mask_move_alike() -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[20:30, 60:80] = 255
    image = np.repeat(mask[..., None], 3, axis=2)
    motion = {"angle": 2.5, "shift_x": -0.03, "shift_y": 0.02}
    moved_mask = rotate_and_shift(mask, **motion, is_mask=True)
    moved_image = rotate_and_shift(image, **motion)
    assert moved_image.shape == image.shape
    assert set(np.unique(moved_mask)) == {0, 255}
    assert not np.array_equal(moved_mask, mask)
    assert np.abs((moved_image[..., 0] > 127).astype(int) - (moved_mask > 0)).sum() <= 10  # of 200, along the border


def test_new_areas_at_the_edges_are_not_black() -> None:
    image = np.full((30, 50, 3), 200, np.uint8)
    assert (rotate_and_shift(image, angle=3, shift_x=0.03, shift_y=-0.03) == 200).all()


@pytest.mark.parametrize(("images", "normal"), [(7, 20), (52, 256), (1, 3), (0, 5), (29, 100)])
def test_the_largest_ratio_works_and_the_next_one_does_not(images: int, normal: int) -> None:
    ratio = largest_ratio(images, normal)
    assert int(ratio * normal) <= images
    assert int((ratio + 1 / normal + 0.0001) * normal) > images


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True),
    count=st.integers(0, 60),
    seed=st.integers(0, 2**64),
)
def test_any_choice(paths: list[str], count: int, seed: int) -> None:
    """The number of rows is right, no repeat occurs twice, and no image repeats before all were chosen."""
    chosen = select_noise(paths, count, seed)
    assert len(chosen) == count
    assert set(chosen["image_path"]) <= set(paths)
    assert not chosen.duplicated(["image_path", "repeat"]).any()
    assert list(chosen["repeat"]) == [number // len(paths) for number in range(count)]
    moved = chosen[["angle", "shift_x", "shift_y"]].abs()
    assert (moved <= (MAX_ANGLE, MAX_SHIFT, MAX_SHIFT)).all(axis=None)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    angle=st.floats(-MAX_ANGLE, MAX_ANGLE),
    shifts=st.tuples(st.floats(-MAX_SHIFT, MAX_SHIFT), st.floats(-MAX_SHIFT, MAX_SHIFT)),
    seed=st.integers(0, 10),
)
def test_any_image_can_be_moved(height: int, width: int, angle: float, shifts: tuple, seed: int) -> None:
    """Size and type do not change, and a mask gets no new values."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    moved = rotate_and_shift(image, angle, *shifts)
    assert (moved.shape, moved.dtype) == (image.shape, np.uint8)
    assert image.min() <= moved.min() <= moved.max() <= image.max()
    mask = image[..., 0] // 128 * 255
    moved = rotate_and_shift(mask, angle, *shifts, is_mask=True)
    assert (moved.shape, moved.dtype) == (mask.shape, np.uint8)
    assert set(np.unique(moved)) <= set(np.unique(mask))


@given(images=st.integers(0, 10_000), normal=st.integers(1, 100_000))
def test_any_largest_ratio(images: int, normal: int) -> None:
    ratio = largest_ratio(images, normal)
    assert int(ratio * normal) <= images
    assert ratio * normal > images - normal / 10_000 - 1e-6
