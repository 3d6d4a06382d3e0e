# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Measured numbers as tables, the same for the terminal and the documents.

The documents have marks, comments that GitHub and the site do not show. The table of a file in ``docs/results/`` is
between a mark and its end::

    <!-- results: robustness.json -->
    ...
    <!-- end of results -->

After the file's name, the mark may have the options ``keys=image,pixel`` (numbers to show instead of the file's default
ones), ``heading="image / pixel AUROC"`` (of the first column), ``title="..."`` (above the table) and
``rows=softpatch;default`` (only these rows, in this order). Where rows are named like
``kolektor, overlap: default``, ``columns=patchcore;default`` shows what is after the colon side by side, see
:func:`compared`.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

Run = Mapping[str, float]
Rows = Mapping[str, Sequence[Sequence[Run]]]

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
MARK = re.compile(r"<!-- results: (?P<what>.*?) -->\n.*?<!-- end of results -->", re.DOTALL)
OWN = "anomalib-softpatch"
OPTIONS = {"columns", "keys", "rows", "heading", "title"}


def table(headings: Sequence[str], rows: Rows, keys: Sequence[str], medians: bool = False) -> str:
    """Return a Markdown table of means and standard deviations, or of medians and ranges.

    Args:
        headings: Heading of the first column, then of each other one.
        rows: For each row its name and, for each column, the numbers of the runs.
        keys: Numbers that a cell shows, separated by slashes.
        medians: Show the median of the runs, the smallest and the largest one.

    Returns:
        The table, without rows and columns that have none of these numbers. A cell with fewer runs than another one
        states how many; a single run has no spread.
    """
    rows = {
        name: [[run for run in column if keys[0] in run] for column in columns]
        for name, columns in rows.items()
        if any(keys[0] in run for column in columns for run in column)
    }
    shown = [number for number, _ in enumerate(headings[1:]) if any(columns[number] for columns in rows.values())]
    headings = [headings[0], *(headings[1:][number] for number in shown)]
    rows = {name: [columns[number] for number in shown] for name, columns in rows.items()}
    most = max((len(column) for columns in rows.values() for column in columns), default=0)

    def figure(values: Sequence[float]) -> str:
        center, spread = fmean(values), f" ± {pstdev(values):.1f}"
        if medians:
            center, spread = median(values), f" ({min(values):.1f} to {max(values):.1f})"
        return f"{center:.1f}" + spread * (len(values) > 1)

    def cell(column: Sequence[Run]) -> str:
        if not column:
            return "n/a"
        # A set without masks has no pixel AUROC, and a set without injected images no ranking
        known = {key: [run[key] for run in column if key in run] for key in keys}
        if not any(known.values()):
            return "n/a"
        text = " / ".join(figure(values) if values else "n/a" for values in known.values())
        return text + f" ({len(column)} run{'s' * (len(column) > 1)})" * (len(column) < most)

    lines = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
    lines += [f"| {name} | {' | '.join(map(cell, columns))} |" for name, columns in rows.items()]
    return "\n".join(lines)


def compared(rows: Rows, columns: Sequence[str], names: Sequence[str]) -> Rows:
    """Put rows that differ in what is after the colon side by side.

    Args:
        rows: Rows with names such as ``kolektor, overlap: default``.
        columns: Headings of their columns.
        names: What is after the colon, in the order in which it becomes columns.

    Returns:
        Rows with names such as ``kolektor, overlap, 10%``. Rows without runs are left out, and so are rows that repeat
        an earlier one: without noise, both protocols are the same.
    """
    starts = dict.fromkeys(name.rpartition(": ")[0] for name in rows)
    found: dict[str, list[Sequence[Run]]] = {}
    for start in starts:
        for number, column in enumerate(columns):
            runs = [rows.get(f"{start}: {name}", [[]] * len(columns))[number] for name in names]
            if any(runs) and runs not in found.values():
                found[start if start.endswith(column) else f"{start}, {column}"] = runs
    return found


def origin(record: Mapping[str, Any], rows: Rows, key: str) -> str:
    """Return, as Markdown, the command, date and machine of the measurement of some rows."""
    others = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != OWN)
    runs = max(sum(key in run for run in column) for columns in rows.values() for column in columns)
    cells = "One run"
    if runs > 1:
        cells = (
            f"Medians of {runs} runs" if record.get("medians") else f"Means of {runs} runs ± their standard deviation"
        )
    changed = " with changes that were not committed" * record["commit"].endswith("-dirty")
    return (
        f"`{record['command']}`: {cells}. Measured on {record['date']} with {OWN} {record['versions'][OWN]} "
        f"(commit {record['commit'].removesuffix('-dirty')}{changed}), {others}, on {record['machine']}."
    )


def rendered(record: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """Return the table of a file that a benchmark has written, and the origin of its numbers."""
    rows, columns = record["rows"], record["headings"][1:]
    if "rows" in options:
        rows = {name: rows[name] for name in options["rows"].split(";")}
    if "columns" in options:
        names = options["columns"].split(";")
        rows, columns = compared(rows, columns, names), names
    keys = options["keys"].split(",") if "keys" in options else record["keys"]
    headings = [options.get("heading", record["headings"][0]), *columns]
    shown = table(headings, rows, keys, record.get("medians", False))
    return f"{options.get('title', record['title'])}:\n\n{shown}\n\n{origin(record, rows, keys[0])}"


def rendered_versions(record: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """Return the table of the versions with which ``noxfile.py`` has run the tests."""
    del options
    names = list(next(iter(record.values()))["versions"])
    headings = ["", *record]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    lines += [f"| {name} | {' | '.join(each['versions'][name] for each in record.values())} |" for name in names]
    for title in ("system", "tests", "date", "commit"):
        lines.append(f"| {title} | {' | '.join(each[title] for each in record.values())} |")
    counts = (f"{each['passed']} passed, {each['skipped']} skipped" for each in record.values())
    lines.append(f"| result | {' | '.join(counts)} |")
    return "\n".join(lines)


def render(page: str, results: Path = RESULTS) -> str:
    """Return a page with the tables of its marks.

    Args:
        page: Markdown.
        results: Folder of the files.

    Raises:
        ValueError: If a mark has an unknown option.
    """

    def replace(match: re.Match[str]) -> str:
        name, *words = shlex.split(match["what"])
        options = dict(word.split("=", 1) for word in words)
        if unknown := options.keys() - OPTIONS:
            msg = (
                f"Unknown in the mark of {name}: {', '.join(sorted(unknown))}. Known are {', '.join(sorted(OPTIONS))}."
            )
            raise ValueError(msg)
        record = json.loads((results / name).read_text(encoding="utf-8"))
        text = (rendered if "rows" in record else rendered_versions)(record, options)
        return f"<!-- results: {match['what']} -->\n\n{text}\n\n<!-- end of results -->"

    return MARK.sub(replace, page)
