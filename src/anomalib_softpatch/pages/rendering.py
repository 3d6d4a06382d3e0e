# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""HTML pages that need no server or network, and that show the images even without JavaScript."""

import io
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape
from PIL import Image

from anomalib_softpatch._version import __version__
from anomalib_softpatch.images.paths import link, to_text
from anomalib_softpatch.images.reading import image_size
from anomalib_softpatch.pages.drawing import GAP, TILE, color_bar
from anomalib_softpatch.text import counted

MOST_FILES_LISTED = 500
Figure = dict[str, Any]


def figure(path: str, name: str, thumbnail: str | None, folder: str | Path) -> Figure:
    """Return the values that the template ``gallery.html.jinja`` needs for each image of any page.

    A page adds ``rank``, ``image_score``, ``duplicate_group``, ``findings`` (names to filter images by), optionally
    ``look_alike_group`` and ``difference`` (:func:`shown_difference`), and the values of its own template.

    Args:
        path: Image file.
        name: Name of the image on the page.
        thumbnail: Link to its drawing, of :func:`~anomalib_softpatch.pages.drawing.draw_pair`; ``None`` if there is
            none.
        folder: Folder of the page.
    """
    size = None
    if thumbnail is not None:
        try:
            size = image_size(path)
        except OSError:  # deleted since it was drawn
            thumbnail = None
    return {"name": name, "location": to_text(path), "link": link(path, folder), "thumbnail": thumbnail, "size": size}


def shown_difference(drawing: str, name: str, largest: int) -> Figure:
    """Return the difference from a copy as the value ``difference`` of a :func:`figure`.

    Args:
        drawing: Link to the drawing of :func:`~anomalib_softpatch.pages.drawing.difference`.
        name: Name of the copy.
        largest: Largest difference of a value, of 255.
    """
    return {"drawing": drawing, "name": name, "largest": largest}


def another_of_group(groups: Sequence[int | None]) -> dict[int, int]:
    """Return for each image in a group the index of another one of the group: the first, or the second for the first.

    Groups are numbers, or ``None`` for an image without a group.
    """
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(place)
    some = [group for group in members.values() if len(group) > 1]
    return {place: group[place == group[0]] for group in some for place in group}


def render_page(
    package: str,
    template: str,
    folder: str | Path,
    figures: Sequence[Figure],
    files: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    **values: Any,
) -> str:
    """Write a page as HTML text.

    Args:
        package: Package of the template.
        template: Template, which extends ``gallery.html.jinja``.
        folder: Folder of the page.
        figures: From :func:`figure`, in the order of the page.
        files: Headings with lists of files and remarks about them; empty lists are left out.
        **values: Other values of the template.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("anomalib_softpatch.pages")]),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = counted
    now = datetime.now().astimezone()
    text = environment.get_template(template).render(
        rows=figures,
        key=f"{to_text(folder)} {now.isoformat()}",
        written=now.strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        color_bar=_data_uri(color_bar(360, 14)),
        tile=TILE,
        gap=GAP,
        groups=max((row["duplicate_group"] or 0 for row in figures), default=0),
        alike_counts=dict(sorted(Counter(filter(None, (row.get("look_alike_group") for row in figures))).items())),
        finding_counts=Counter(name for row in figures for name in row["findings"]),
        file_lists=[(heading, listed[:MOST_FILES_LISTED], len(listed)) for heading, listed in files],
        **values,
    )
    return text.encode(errors="replace").decode()  # file systems allow names that are not Unicode


def _data_uri(image: Image.Image) -> str:
    """Return an image as a link that contains a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
