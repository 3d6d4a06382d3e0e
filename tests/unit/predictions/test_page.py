# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The order of the images on the page of a prediction run, and their near copies."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anomalib_softpatch.pages.drawing import TILE
from anomalib_softpatch.predictions.page import near_copies, what_to_look_at
from anomalib_softpatch.predictions.table import Prediction, read_predictions, verdict, write_predictions


def predictions(scores: list[float]) -> list[Prediction]:
    return [
        Prediction(f"/{number:03}.png", score, 0.5, verdict(score, 0.5), 0, 0) for number, score in enumerate(scores)
    ]


@given(st.lists(st.tuples(st.sampled_from(np.linspace(0, 1, 21).tolist()), st.integers(0, 5)), max_size=60))
def test_borderline_images_come_first_one_of_each_group(images: list[tuple[float, int]]) -> None:
    scores, groups = [score for score, _ in images], [group for _, group in images]
    order, borderline = what_to_look_at(predictions(scores), groups)
    assert sorted(order) == list(range(len(images)))
    first, rest = order[:borderline], order[borderline:]
    assert [scores[index] for index in rest] == sorted((scores[index] for index in rest), reverse=True)
    distances = [abs(scores[index] - 0.5) for index in first]
    assert distances == sorted(distances)
    assert len({groups[index] for index in first}) == borderline
    most = -(-len(images) // 10)
    for side in (True, False):
        chosen = [index for index in first if (scores[index] > 0.5) == side]
        assert len(chosen) <= most
        # An image that is not borderline although there is room, or although it is nearer, is a copy of one that is
        for index in rest:
            if (scores[index] > 0.5) == side:
                farthest = max((abs(scores[other] - 0.5) for other in chosen), default=-1.0)
                if len(chosen) < most or abs(scores[index] - 0.5) < farthest:
                    assert groups[index] in {groups[other] for other in first}


def test_without_a_threshold_the_highest_score_comes_first() -> None:
    nan = float("nan")
    some = [Prediction(f"/{number}.png", score, nan, "", 0, 0) for number, score in enumerate([1.0, 9.0, 4.0])]
    assert what_to_look_at(some, [0, 1, 2]) == ([1, 2, 0], 0)


def test_near_copies_are_found_by_their_drawings(kolektor: Path, tmp_path: Path) -> None:
    """Copies are lighter, shifted by a few pixels, or saved with another quality; other images are not copies."""
    originals = sorted((kolektor / "kolektor" / "train" / "good").iterdir())[:40:2]
    drawings = []
    for number, path in enumerate([*originals, *originals[:3]]):
        with Image.open(path) as file:
            image = file.convert("RGB")
        if number >= len(originals):
            changed = [image.point(lambda value: min(255, value + 6)), image.crop((3, 2, 256, 256)), image]
            image = changed[number - len(originals)]
        drawings.append(tmp_path / f"{number}.jpg")
        image.resize((TILE, TILE)).save(drawings[-1], quality=60 if number >= len(originals) else 82)
    groups = near_copies([*drawings, tmp_path / "not_drawn.jpg"])
    assert [groups[len(originals) + number] for number in range(3)] == groups[:3]
    assert len(set(groups[: len(originals)])) == len(originals)
    assert groups.count(groups[-1]) == 1


def test_the_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    nan = float("nan")
    written = [
        Prediction("/a, b.png", 0.25, 0.5, "normal", 3, 4, "", "2026-01-01T00:00:00.000001+00:00", "0123"),
        Prediction("/line\nbreak.png", 0.75, 0.5, "anomalous", 0, 0, "", "", "0123"),
        Prediction("/c.png", nan, nan, "unreadable", None, None, "too small", "", "0123"),
    ]
    file = write_predictions([Prediction("/c.png", 1.0, 0.5, "anomalous", 1, 1), *written], tmp_path / "table.csv")
    read = {each.path: each for each in read_predictions(file)}
    assert set(read) == {each.path for each in written}
    for each in written:
        assert repr(read[each.path]) == repr(each)  # NaN is not equal to itself
