# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images that are set aside before training: their names and reasons, and which copy stays."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from anomalib_softpatch.cleaning.selection import Kind, SetAside, choose, names_of, write_set_aside
from anomalib_softpatch.images.decisions import DEFECT, NORMAL, SET_ASIDE, Box, Decision
from anomalib_softpatch.images.paths import from_text, to_text

FILES = {
    "a.png": "1",
    "b.png": "2",
    "b copy.png": "2",
    "b other.png": "2",
    "broken.png": "3",
    "c.png": "4",
    "d.png": "",
}
RANKED = ["c.png", "b.png", "b copy.png", "b other.png", "a.png"]
UNREADABLE = {"broken.png": "truncated", "d.png": "no permission", "notes.txt": "not an image file"}
ALWAYS = {"broken.png": "truncated", "d.png": "no permission"}


def chosen(decisions: dict[str, str] | None = None, share: float = 0.0) -> dict[str, str]:
    """Return the reasons by name."""
    return {name: each.reason for name, each in choose(FILES, RANKED, UNREADABLE, decisions or {}, share).items()}


def test_unreadable_files_and_extra_copies() -> None:
    assert chosen() == ALWAYS | {"b.png": "exact copy of b copy.png", "b other.png": "exact copy of b copy.png"}


def test_the_normal_copy_stays() -> None:
    expected = {"b copy.png": "exact copy of b.png", "b other.png": "exact copy of b.png"}
    assert chosen({"b.png": NORMAL}) == ALWAYS | expected


def test_if_a_person_sets_a_copy_aside_the_next_one_stays() -> None:
    expected = {"b copy.png": "decided by a person", "b.png": "exact copy of b other.png"}
    assert chosen({"b copy.png": SET_ASIDE}) == ALWAYS | expected
    assert chosen(dict.fromkeys(["b.png", "b copy.png", "b other.png"], SET_ASIDE)).keys() >= {"b.png", "b other.png"}


def test_decisions_come_first() -> None:
    copies = dict.fromkeys(["b.png", "b copy.png", "b other.png"], NORMAL)
    assert chosen({**copies, "c.png": NORMAL, "a.png": SET_ASIDE}, share=0.6) == ALWAYS | {
        "a.png": "decided by a person"
    }
    assert chosen({**copies, "c.png": NORMAL, "a.png": DEFECT}, share=0.6) == ALWAYS | {
        "a.png": "decided by a person to be a defect"
    }


def test_copies_of_a_defect_are_defects() -> None:
    reason = "decided by a person to be a defect"
    copies = {"b copy.png": f"{reason}: exact copy of b.png", "b other.png": f"{reason}: exact copy of b.png"}
    assert chosen({"b.png": DEFECT}) == ALWAYS | copies | {"b.png": reason}
    assert chosen({"b.png": DEFECT, "b copy.png": SET_ASIDE})["b other.png"] == copies["b other.png"]
    with pytest.raises(ValueError, match=r"'b copy.png' is called normal and 'b.png' a defect, but they are copies"):
        chosen({"b.png": DEFECT, "b copy.png": NORMAL})
    through_link = choose(
        FILES | {"link.png": "1"}, RANKED, UNREADABLE, {"link.png": DEFECT}, links={"link.png": "a.png"}
    )
    assert through_link["a.png"] == SetAside(Kind.DECIDED, reason)
    assert through_link["link.png"] == SetAside(Kind.LINK, "link to a.png")


@pytest.mark.parametrize(("share", "names"), [(0.0, set()), (0.2, {"c.png"}), (0.59, {"c.png", "b copy.png"})])
def test_share_of_the_most_suspicious(share: float, names: set[str]) -> None:
    """Images that are set aside anyway count, so that the share is that of the images in the report."""
    assert chosen(share=share) == chosen() | {
        name: f"number {RANKED.index(name) + 1} of the 5 images in the report" for name in names
    }


def test_kinds_of_reasons() -> None:
    kinds = {name: each.kind for name, each in choose(FILES, RANKED, UNREADABLE, {"a.png": DEFECT}, 0.2).items()}
    assert kinds == {
        "a.png": Kind.DECIDED, "b.png": Kind.COPY, "b other.png": Kind.COPY, "c.png": Kind.SUSPICIOUS,
        "broken.png": Kind.UNREADABLE, "d.png": Kind.UNREADABLE,
    }  # fmt: skip


def test_decisions_about_unreadable_and_missing_files_have_no_effect() -> None:
    assert chosen({"broken.png": NORMAL, "gone.png": SET_ASIDE}) == chosen()


def test_decisions_are_looked_up_in_the_folder() -> None:
    verdicts = {"/set/sub/a.png": DEFECT, "/other/a.png": SET_ASIDE, "/settee/b.png": NORMAL}
    decisions = [Decision(Path(path), verdict) for path, verdict in verdicts.items()]
    decisions += [Decision(Path("/set/sub/a.png"), DEFECT, Box(*place)) for place in ((0, 0, 1, 1), (5, 5, 1, 1))]
    assert names_of(decisions, Path("/set")) == ({"sub/a.png": DEFECT}, 2)


def test_the_list_can_hold_any_name(tmp_path: Path) -> None:
    names = ["plain.png", "line\nbreak.png", "b\udcff.png", "=1+1.png"]
    paths = [tmp_path / name for name in names]
    rows = {name: SetAside(Kind.UNREADABLE, 'it, "is"\nso \udcff') for name in names}
    rows[names[1]] = replace(rows[names[1]], moved_to=paths[0])
    write_set_aside(tmp_path, rows, tmp_path / "list.csv")
    with (tmp_path / "list.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [from_text(row["path"]) for row in rows] == paths
    assert all(row["path"].isprintable() and not row["path"].startswith("=") for row in rows)
    assert [row["moved_to"] for row in rows] == ["", to_text(paths[0]), "", ""]
