# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The file that records which stages a run has finished."""

import json
from pathlib import Path

import pytest

from anomalib_softpatch.cleaning.state import FILE, State, key_of


def test_finished_stages_are_found_by_their_key(tmp_path: Path) -> None:
    state = State(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    state.claim()
    state.finish("fit", key_of("a", 1), {"names": ["b\udcff\n.png"]})
    again = State(tmp_path / "out")
    assert again.finished("fit", key_of("a", 1)) == again.latest("fit") == {"names": ["b\udcff\n.png"]}
    assert again.finished("fit", key_of("a", 2)) is None
    assert again.finished("report", key_of("a", 1)) is None
    assert again.latest("report") == {}
    again.forget("fit")
    assert State(tmp_path / "out").latest("fit") == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FILE]


def test_different_inputs_have_different_keys() -> None:
    keys = {key_of({"a": "1"}), key_of({"a": 1}), key_of({"b": "1"}), key_of("a"), key_of(["a"]), key_of("a", "b")}
    assert len(keys) == 6
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.txt", "text", "has files in it that are not from an earlier run"),
        (FILE, "{}", "was not written by anomalib-softpatch clean-train"),
        (FILE, "[", "was not written by"),
        (FILE, "[]", "was not written by"),
        (FILE, json.dumps({"written_by": "anomalib-softpatch clean-train", "format": 99}), "a newer version"),
    ],
)
def test_other_folders_are_refused_and_not_changed(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        State(tmp_path)
    assert (tmp_path / name).read_text() == text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        State(tmp_path / "file")
