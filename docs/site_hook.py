# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Add the repository's own pages to the site, without a second copy of them."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of ``docs/``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links between ``docs/`` and the rest of the repository to the site's pages."""
    own = page.file.src_uri in PAGES.values()

    def target(match: re.Match[str]) -> str:
        path = match[1]
        path = path.removeprefix("docs/") if own else path.removeprefix("../")
        return f"]({PAGES.get(path, path)}"

    return re.sub(r"\]\(((?:\.\./|\w)[^)#:]*)", target, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Replace the roles in docstrings, which Markdown does not know, with the names that they refer to."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>(?:~[\w.]*\.)?", "<code>", html)
