# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The report as one HTML file that needs nothing else: no server, no network.

The template is Jinja's, the histogram matplotlib's, and the table, which sorts, searches and turns pages, is DataTables
as the package itables brings it along (620 kB of script in every report; plotly or bokeh would be 4 MB).
"""

import io
from base64 import b64encode
from datetime import datetime

import matplotlib as mpl
import pandas as pd
from itables import options, to_html_datatable
from itables.javascript import generate_init_offline_itables_html
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from anomalib_softpatch._version import __version__
from anomalib_softpatch.report.contact_sheet import colour_bar
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.noise_level import NoiseLevel

BINS = 40
MOST_FILES_LISTED = 500

HEADINGS = {
    "rank": "Rank",
    "path": "Image",
    "image_score": "Noise score",
    "removed_share": "Patches removed [%]",
    "highest_patch_score": "Highest patch",
    "highest_patch_x": "at x [px]",
    "highest_patch_y": "at y [px]",
    "label": "Truth",
}
QUALITY = {
    "image_AUROC": ("Images", "AUROC"),
    "image_precision": ("Images", "Precision at the known count"),
    "patch_AUROC": ("Patches", "AUROC"),
    "patch_AUPRO": ("Patches", "AUPRO"),
    "patch_precision": ("Patches", "Precision at the known count"),
}


def render(findings: Findings, most: dict[int, Image.Image], least: dict[int, Image.Image]) -> str:
    """Write the report.

    Args:
        findings: Findings of the set.
        most: Images to show of the most suspicious ones, by their index, in order.
        least: The same for the least suspicious ones.

    Returns:
        HTML text.
    """
    environment = Environment(
        loader=PackageLoader("anomalib_softpatch.report", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = dict(zip(findings.order, findings.table.to_dict("records"), strict=True))
    for index, row in rows.items():
        row["name"] = findings.names[index]
    text = environment.get_template(
        "report.html.jinja"
    ).render(
        findings=findings,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        sections=[
            ("Most suspicious", [(rows[index], _jpeg(pair)) for index, pair in most.items()]),
            ("Least suspicious, as a control", [(rows[index], _jpeg(pair)) for index, pair in least.items()]),
        ],
        colour_bar=_jpeg(colour_bar(360, 14)),
        histogram=Markup(histogram(findings)),  # drawn by matplotlib from numbers
        quality=[(*QUALITY[name], value) for name, value in findings.quality.items()],
        table=Markup(sortable_table(findings.table)),  # itables escapes the paths
        file_lists=[
            ("Files not looked at", findings.skipped[:MOST_FILES_LISTED], len(findings.skipped)),
            ("Odd images", findings.remarks[:MOST_FILES_LISTED], len(findings.remarks)),
        ],
        level=_level_texts(findings.noise_level),
    )
    return text.encode(errors="replace").decode()  # names that are no Unicode, which file systems allow


def _level_texts(level: NoiseLevel) -> dict[str, str]:
    """Say how many images stand out, and how far that can be trusted."""
    return {
        "share": f"{100 * level.share:.0f} %",
        "interval": f"{100 * level.low:.0f} to {100 * level.high:.0f} %",
    }


def _jpeg(image: Image.Image) -> str:
    """Return an image as a data URI."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def histogram(findings: Findings) -> str:
    """Draw how many images have which score.

    Args:
        findings: Findings of the set.

    Returns:
        SVG element.
    """
    scores = findings.image_scores.cpu().numpy()
    with mpl.rc_context({**mpl.rcParamsDefault, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(12, 2.8), layout="constrained")
        axis = figure.subplots()
        if findings.labels is None:
            axis.hist(scores, bins=BINS, color="#3b6ea8")
        else:
            labels = findings.labels.cpu().numpy()
            axis.hist(
                [scores[~labels], scores[labels]],
                bins=BINS,
                stacked=True,
                color=["#3b6ea8", "#d1495b"],
                label=["normal", "anomalous (known)"],
            )
            axis.legend(frameon=False)
        axis.set_xlabel("Noise score of the image")
        axis.set_ylabel("Images")
        axis.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def sortable_table(table: pd.DataFrame) -> str:
    """Make an HTML table that sorts, searches and turns pages by itself.

    Args:
        table: Table of the images, see :attr:`Findings.table`.

    Returns:
        HTML elements with all the script they need.
    """
    shown = table.assign(removed_share=100 * table["removed_share"]).rename(columns=HEADINGS)
    shown = shown.round({"Noise score": 4, "Patches removed [%]": 1, "Highest patch": 4})
    return generate_init_offline_itables_html(options.dt_bundle) + to_html_datatable(
        shown,
        connected=False,
        maxBytes=0,  # all rows, however many
        showIndex=False,
        order=[[0, "asc"]],
        lengthMenu=[25, 100, 500],
        classes="display compact",
        style="width:100%",
    )
