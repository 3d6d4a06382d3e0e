# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Files appear as a whole, or not at all."""

from pathlib import Path

import pytest

from anomalib_softpatch.files import atomic_output


def test_whoever_reads_the_earlier_file_reads_it_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "table.csv"
    with atomic_output(file) as temporary:
        temporary.write_text("earlier")
    with file.open() as reader:
        with atomic_output(file) as temporary:
            temporary.write_text("later, and longer")
            assert file.read_text() == "earlier"
        assert reader.read() == "earlier"
    assert file.read_text() == "later, and longer"
    assert [path.name for path in file.parent.iterdir()] == ["table.csv"]


def test_an_interrupted_writer_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_output(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
