# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The documents show the numbers of `docs/results/`, as the benchmarks wrote them."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import networkx
import numpy as np
import pytest

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import render_tables
import results

FILES = sorted((ROOT / "docs" / "results").glob("*.json"))
MEASURED = [path for path in FILES if "rows" in json.loads(path.read_text())]
RECORD = {
    "title": "Image / pixel AUROC",
    "command": "python benchmarks/robustness.py --seeds 0 1 2",
    "date": "2026-11-25",
    "commit": "0123abc-dirty",
    "machine": "a processor, 1 thread on 2 cores",
    "versions": {"anomalib-softpatch": "0.2.0", "torch": "2.14.1"},
    "headings": ["image / pixel", "0 %", "10 %"],
    "keys": ["image", "pixel"],
    "rows": {
        "default": [
            [{"image": 80.0, "pixel": 90.0, "fit": 3.0}, {"image": 84.0, "pixel": 90.0, "fit": 4.0}],
            [{"image": 70.25, "pixel": 60.0, "fit": 5.0}],
        ],
        "no times": [[{"image": 1.0, "pixel": 2.0}], []],
    },
}


def page(what: str) -> str:
    return f"Text.\n\n<!-- results: {what} -->\nold\n<!-- end of results -->\n\nMore text.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "robustness.json").write_text(json.dumps(RECORD))
    return tmp_path


def test_table_by_hand(folder: Path) -> None:
    text = results.render(page("robustness.json"), folder)
    assert text.startswith("Text.\n\n<!-- results: robustness.json -->\n")
    assert text.endswith("\n<!-- end of results -->\n\nMore text.\n")
    assert "old" not in text
    assert (
        "| image / pixel | 0 % | 10 % |\n"
        "|---|---:|---:|\n"
        "| default | 82.0 ± 2.0 / 90.0 ± 0.0 | 70.2 / 60.0 (1 run) |\n"
        "| no times | 1.0 / 2.0 (1 run) | n/a |\n"
    ) in text
    for origin in (RECORD["command"], RECORD["machine"], RECORD["date"], "torch 2.14.1", "0.2.0", "not committed"):
        assert origin in text
    assert results.render(text, folder) == text


def test_medians_by_hand(folder: Path) -> None:
    runs = [[{"image": 1.0}, {"image": 9.0}, {"image": 3.0}], [{"image": 2.0}]]
    record = RECORD | {"keys": ["image"], "medians": True, "rows": {"default": runs, "other": [[{"fit": 1.0}], []]}}
    (folder / "medians.json").write_text(json.dumps(record))
    text = results.render(page("medians.json"), folder)
    assert "| default | 3.0 (1.0 to 9.0) | 2.0 (1 run) |\n\n" in text  # and no row of other numbers
    assert "Medians of 3 runs." in text
    text = results.render(page("medians.json keys=fit"), folder)
    assert "\n| image / pixel | 0 % |\n|---|---:|\n| other | 1.0 |\n" in text  # and no column of other numbers
    assert "One run." in text


def test_choice_of_numbers_and_rows(folder: Path) -> None:
    text = results.render(page('robustness.json keys=fit heading="fit [s]"'), folder)
    assert "| fit [s] | 0 % | 10 % |\n|---|---:|---:|\n| default | 3.5 ± 0.5 | 5.0 (1 run) |\n\n" in text
    assert "\nImage / pixel AUROC:\n" in text
    text = results.render(page('robustness.json title="A title of its own"'), folder)
    assert "\nA title of its own:\n" in text
    text = results.render(page('robustness.json rows="no times;default"'), folder)
    assert text.index("| no times |") < text.index("| default |")
    text = results.render(page('robustness.json rows="no times"'), folder)
    assert "default" not in text


def test_settings_side_by_side(folder: Path) -> None:
    clean = [{"image": 9.0}]
    rows = {
        "tiles, overlap: ours": [clean, [{"image": 8.0}]], "tiles, overlap: theirs": [clean, [{"image": 7.0}]],
        "tiles, no overlap: ours": [clean, []], "tiles, no overlap: theirs": [clean, [{"image": 6.0}]],
        "cells, 10 %: ours": [[], [{"image": 5.0}]],
    }  # fmt: skip
    (folder / "sides.json").write_text(json.dumps(RECORD | {"keys": ["image"], "rows": rows}))
    text = results.render(page('sides.json columns="theirs;ours" heading=set'), folder)
    assert (
        "| set | theirs | ours |\n"
        "|---|---:|---:|\n"
        "| tiles, overlap, 0 % | 9.0 | 9.0 |\n"
        "| tiles, overlap, 10 % | 7.0 | 8.0 |\n"
        "| tiles, no overlap, 10 % | 6.0 | n/a |\n"
        "| cells, 10 % | n/a | 5.0 |\n\n"
    ) in text


def test_unknown_option_of_a_mark(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"robustness.json: color. Known are columns, heading, keys, rows, title"):
        results.render(page("robustness.json color=red"), folder)


@pytest.mark.parametrize("path", render_tables.PAGES, ids=lambda path: path.name)
def test_pages_show_what_the_files_hold(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- results: ") == len(results.MARK.findall(text)), "a mark without an end"
    assert results.render(text) == text, "run `make tables`"


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.name)
def test_files_are_shown_and_record_how_they_were_measured(path: Path) -> None:
    """Every number of every cell can be found in a page, computed here by NumPy."""
    record = json.loads(path.read_text(encoding="utf-8"))
    pages = "\n".join(page.read_text(encoding="utf-8") for page in render_tables.PAGES)
    marks = re.findall(rf"<!-- results: {path.name}(.*?) -->", pages)
    assert marks, "no page shows it"
    assert record["command"].startswith("python benchmarks/")
    assert not re.search(r"(^|[ :=])/", record["command"]), "a path of somebody's machine"
    assert not record["commit"].endswith("-dirty")
    compared = {name for mark in marks if (names := re.search('columns="(.*?)"', mark)) for name in names[1].split(";")}
    for name, columns in record["rows"].items():
        start, _, setting = name.rpartition(": ")
        for heading, runs in zip(record["headings"][1:], columns, strict=True):
            shown = name
            if setting in compared and heading != "0%":  # where both protocols are the same
                shown = start if start.endswith(heading) else f"{start}, {heading}"
            if runs and ("" in marks or shown != name):
                center = (np.median if record.get("medians") else np.mean)([run[record["keys"][0]] for run in runs])
                assert re.search(rf"\| {re.escape(shown)} \|.* {center:.1f}[ |]", pages)


def test_roles_of_docstrings_are_shown_as_names() -> None:
    specification = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "site_hook.py")
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    html = "<p>see :class:<code>~anomalib_softpatch.components.FeatureCache</code> and :func:<code>a.b</code>: c</p>"
    assert hook.on_page_content(html) == "<p>see <code>FeatureCache</code> and <code>a.b</code>: c</p>"


def test_versions_are_shown() -> None:
    """Those of `docs/results/tested_with.json`, which `nox` writes."""
    record = json.loads((ROOT / "docs" / "results" / "tested_with.json").read_text())
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert "<!-- results: tested_with.json -->" in page
    for session in record.values():
        assert session["passed"] > 0
        for name, version in session["versions"].items():
            assert re.search(rf"\| {name} \|.* {re.escape(version)} \|", page)


LAYERS = str(ROOT / "docs" / "figures" / "layers.py")


def test_no_two_folders_import_each_other() -> None:
    assert list(networkx.simple_cycles(runpy.run_path(LAYERS)["graph"]())) == []


def test_the_figure_of_the_layers_is_that_of_the_imports() -> None:
    """Otherwise run python docs/figures/layers.py."""
    figure = runpy.run_path(LAYERS)
    assert figure["FIGURE"].read_text(encoding="utf-8") == figure["text"]()
    drawn = figure["FIGURE"].with_suffix(".svg").read_text(encoding="utf-8")
    assert all(
        f"<title>{start}&#45;&gt;{stop}</title>" in drawn
        for start, stop in re.findall(r"(\w+) -> (\w+)", figure["text"]())
    )
