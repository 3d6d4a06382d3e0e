# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Write the tables of ``docs/results/`` into the documents, see ``results.py``.

Example::

    make tables  # python benchmarks/render_tables.py
"""

from pathlib import Path

from results import render

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "src" / "anomalib_softpatch" / "models" / "soft_patch_plus" / "README.md"
PAGES = (ROOT / "README.md", MODEL, *sorted((ROOT / "docs").glob("*.md")))


def main() -> None:
    """Write the pages that change, and print their names."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
