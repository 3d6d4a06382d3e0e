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


def test_what_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("earlier")

    def write() -> None:
        with atomic_output(file) as temporary:
            temporary.write_text("half")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write()
    assert file.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
