# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Draw which packages import which: ``python docs/figures/layers.py`` writes layers.dot and layers.svg.

An arrow that follows from others is left out. Packages that import each other are an error, which names them.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import networkx

FIGURE = Path(__file__).with_suffix(".dot")
PACKAGE = Path(__file__).resolve().parents[2] / "src" / "anomalib_softpatch"
HEAD = """// python docs/figures/layers.py
digraph layers {
  graph [fontname="Helvetica,Arial,sans-serif" rankdir=LR nodesep=0.3 ranksep=0.6 bgcolor=white]
  node [fontname="Helvetica,Arial,sans-serif" fontsize=12 shape=box style="rounded,filled" fillcolor="#eef2fb" \
color="#5c6bc0" margin="0.15,0.08"]
  edge [color="#455a64"]
"""


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of this package that a module imports when it runs, also within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            yield str(node.module)
        yield from imports(node)


def graph() -> networkx.DiGraph:
    """Return which of the folders import which."""
    found = networkx.DiGraph()
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    for folder in folders:
        for file in (PACKAGE / folder).rglob("*.py"):
            named = {name.split(".")[1] for name in imports(ast.parse(file.read_text(encoding="utf-8")))}
            found.add_edges_from((folder, other) for other in named & folders - {folder})
    return found


def text() -> str:
    """Return the figure in Graphviz's language."""
    found = graph()
    cycles = [" -> ".join([*cycle, cycle[0]]) for cycle in networkx.simple_cycles(found)]
    if cycles:
        msg = f"Folders import each other: {'; '.join(cycles)}. Move what the lower one needs below both."
        raise ValueError(msg)
    lines = [f"  {start} -> {stop}" for start, stop in sorted(networkx.transitive_reduction(found).edges)]
    return HEAD + "\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FIGURE.write_text(text(), encoding="utf-8")
    subprocess.run(["dot", "-Tsvg", FIGURE, "-o", FIGURE.with_suffix(".svg")], check=True)
