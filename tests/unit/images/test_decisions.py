# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Files of decisions: which are read and which are refused, and the pixels of a region."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_softpatch.images.decisions import (
    DEFECT,
    NORMAL,
    SET_ASIDE,
    UNDECIDED,
    Box,
    Decision,
    read_decisions,
    region_mask,
)
from samples import write_decisions


def written(folder: Path, *rows: str, columns: str = "path,verdict,region") -> Path:
    file = folder / "decisions.csv"
    file.write_text("\n".join([columns, *rows, ""]), encoding="utf-8")
    return file


def test_decisions_of_people_and_of_earlier_versions(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 1).save(tmp_path / "mask.png")
    file = written(
        tmp_path,
        "/set/a.png,normal,",
        "/set/b.png,defect,3 4 5 6",
        "/set/b.png,defect,mask.png",
        "c.png,set_aside,",
        "../d.png,,",
        "",
        "/set/e.png,false_alarm,1 2 3 4",
        "/set/f.png, missed_defect ,",
        "/set/a.png,keep,",
        "file:///set/line%0Abreak.png,normal,",
    )
    assert read_decisions(file) == [
        Decision(Path("/set/a.png"), NORMAL),
        Decision(Path("/set/b.png"), DEFECT, Box(3, 4, 5, 6)),
        Decision(Path("/set/b.png"), DEFECT, tmp_path / "mask.png"),
        Decision(tmp_path / "c.png", SET_ASIDE),
        Decision(tmp_path.parent / "d.png", UNDECIDED),
        Decision(Path("/set/e.png"), NORMAL, Box(1, 2, 3, 4)),
        Decision(Path("/set/f.png"), DEFECT),
        Decision(Path("/set/line\nbreak.png"), NORMAL),
    ]
    for columns in ("path,decision", "path,verdict", "\ufeffpath,decision"):
        file = written(tmp_path, "/set/a.png,keep", "/set/b.png,set_aside", "/set/c.png,", columns=columns)
        assert [each.verdict for each in read_decisions(file)] == [NORMAL, SET_ASIDE, UNDECIDED]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no images"),
        (["/a.png,normal"], "not a table with the columns path, verdict, region: row 2 has 2 cells instead of 3"),
        (["/a.png,normal,", "/b.png,anomalous,"], "row 3: the verdict 'anomalous' must be normal, defect, set_aside"),
        (["", "/a.png,Normal,"], "row 3: the verdict 'Normal' must be"),
        ([",normal,"], "row 2: '' is not the path of a file"),
        (["/a.png,defect,1 2 3"], "row 2: the box '1 2 3' must be four whole numbers: x y width height"),
        (["/a.png,defect,1 2 3 4.5"], "row 2: the box '1 2 3 4.5' must be four whole numbers"),
        (["/a.png,defect,1 2 0 4"], "row 2: the box '1 2 0 4' has no area"),
        (["/a.png,defect,1 2 3 -4"], "row 2: the box '1 2 3 -4' has no area"),
        (["/a.png,defect,-1 2 3 4"], "row 2: the box '-1 2 3 4' begins outside the image"),
        (["/a.png,defect,gone.png"], "row 2: the region 'gone.png' is neither a box .* nor an existing mask file"),
        (["/a.png,defect,", "/b.png,,", "/a.png,normal,"], "row 4: '/a.png' is normal here and defect in row 2"),
        (["/a.png,defect,1 2 3 4", "/b/../a.png,normal,"], "row 3: '/a.png' is normal here and defect in row 2"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    file = written(tmp_path, *rows)
    with pytest.raises(ValueError, match=message) as error:
        read_decisions(file)
    assert repr(str(file)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"path,score,verdict\na.png,1,normal\n", b"path,verdict\n\xff,normal\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.csv").write_bytes(content)
    with pytest.raises(ValueError, match="is not a table with the columns path, verdict, region"):
        read_decisions(tmp_path / "file.csv")


@pytest.mark.skipif(os.name == "nt", reason="Windows allows only administrators to make links")
def test_one_image_by_two_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "folder").symlink_to(".", target_is_directory=True)
    for other in ("link.png", "folder/a.png"):
        with pytest.raises(ValueError, match="is defect here and normal in row 2"):
            read_decisions(written(tmp_path, "a.png,normal,", f"{other},defect,"))
    with pytest.raises(ValueError, match="is normal here and set_aside in row 2"):
        read_decisions(written(tmp_path, "a.png,set_aside,", "link.png,normal,"))
    for rows in (("a.png,defect,", "link.png,,"), ("a.png,,", "link.png,defect,")):
        read = read_decisions(written(tmp_path, *rows))
        assert read == [Decision(tmp_path / "a.png", DEFECT), Decision(tmp_path / "link.png", DEFECT)]
    # The page shows link and image; setting the link aside does not affect the image
    assert len(read_decisions(written(tmp_path, "a.png,normal,", "link.png,set_aside,"))) == 2


def test_an_undecided_row_is_not_a_verdict(tmp_path: Path) -> None:
    file = written(tmp_path, "/a.png,,", "/a.png,defect,", "/b.png,,")
    assert read_decisions(file) == [Decision(Path("/a.png"), DEFECT), Decision(Path("/b.png"), UNDECIDED)]


def test_written_decisions_can_be_read(tmp_path: Path) -> None:
    mask = tmp_path / "masks" / "one, two.png"
    mask.parent.mkdir()
    Image.new("1", (16, 16), 1).save(mask)
    decisions = [
        Decision(Path("/set/line\nbreak.png"), DEFECT, mask),
        Decision(Path('/set/quote".png'), NORMAL, Box(1, 2, 3, 4)),
        Decision(Path(os.fsdecode(b"/set/\xff.png")), SET_ASIDE),
        Decision(Path("/set/a.png"), UNDECIDED),
    ]
    file = tmp_path / "folder" / "decisions.csv"
    write_decisions(decisions, file)
    assert read_decisions(file) == decisions


def test_pixels_of_a_region(tmp_path: Path) -> None:
    places = np.argwhere(region_mask(Box(2, 1, 3, 2), (6, 4))).tolist()
    assert places == [[1, 2], [1, 3], [1, 4], [2, 2], [2, 3], [2, 4]]
    expected = np.random.default_rng(0).random((20, 30)) < 0.3
    for name, values in {
        "eight.png": expected.astype(np.uint8),
        "one.png": expected,
        "sixteen.png": expected.astype(np.uint16) * 65535,
        "color.png": np.stack([0 * expected, 0 * expected, 255 * expected], axis=2).astype(np.uint8),
        "float.tif": expected.astype(np.float32),
    }.items():
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(region_mask(tmp_path / name, (30, 20)), expected)


def test_regions_that_do_not_fit(tmp_path: Path) -> None:
    for box in (Box(4, 0, 3, 1), Box(0, 3, 1, 2)):
        with pytest.raises(ValueError, match="extends beyond its image of 6 x 4 pixels"):
            region_mask(box, (6, 4))
    Image.new("L", (30, 20)).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="has 30 x 20 pixels, but its image has 20 x 30"):
        region_mask(tmp_path / "empty.png", (20, 30))
    with pytest.raises(ValueError, match="has only zeros"):
        region_mask(tmp_path / "empty.png", (30, 20))
    with pytest.raises(ValueError, match="cannot be used: not an image"):
        region_mask(tmp_path / "broken.png", (30, 20))


def test_torch_is_not_imported() -> None:
    script = "import sys; import anomalib_softpatch.images.decisions; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
