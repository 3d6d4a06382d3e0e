# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Pages in a real browser, see the fixture `run_browser`."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path


def drive(page: Path, script: str, run_browser: Callable[..., str], **kwargs: int) -> object:
    """Run a script in a copy of a page, and return the value that it passes to `result`."""
    copy = page.with_name("driven.html")
    copy.write_text(
        page.read_text(encoding="utf-8")
        + "<pre id='result'></pre><script>{const result = (value) => {"
        + "document.getElementById('result').textContent = JSON.stringify(value)};"
        + "const press = (key) => (document.activeElement ?? document.body).dispatchEvent("
        + "new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));"
        + "const click = (selector) => document.querySelector(selector).click();"
        + "const name = (one) => one.dataset.name;"
        + "const aside = () => [...document.querySelectorAll('figure.set_aside')].map(name);"
        + "const normal = () => [...document.querySelectorAll('figure.normal')].map(name);"
        + "const defects = () => [...document.querySelectorAll('figure.defect')].map(name);"
        + "const visible = () => [...document.querySelectorAll('figure')].filter((one) => one.offsetParent).map(name);"
        + script
        + "}</script>",
        encoding="utf-8",
    )
    for _ in range(3):  # on a busy machine, the page may be printed before the script has finished waiting
        document = run_browser(copy, "--dump-dom", **kwargs)
        found = re.search(r'<pre id="result">(.*?)</pre>', document, flags=re.DOTALL).group(1)
        if found:
            break
    copy.unlink()
    return json.loads(html.unescape(found))


def layout(page: Path, width: int, run_browser: Callable[..., str]) -> object:
    """Return the widths of a page and of its content, the number of images, and whether all fit into a window.

    The page is in a frame, since a headless window is at least 500 pixels wide.
    """
    text = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    script = f"""
        document.body.replaceChildren(document.getElementById("result"));
        const frame = document.createElement("iframe");
        frame.style = "width: {width}px; height: 900px; border: 0; position: absolute; left: 0";
        frame.srcdoc = {text};
        frame.onload = () => {{
          const page = frame.contentDocument.documentElement;
          const figures = [...page.querySelectorAll("figure")].filter((one) => one.offsetParent);
          const right = Math.max(...figures.map((one) => one.getBoundingClientRect().right));
          result([page.clientWidth, page.scrollWidth, figures.length, right <= page.clientWidth]);
        }};
        document.body.append(frame);
    """
    return drive(page, script, run_browser)
