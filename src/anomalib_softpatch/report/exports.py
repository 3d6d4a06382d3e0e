# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A report's findings for other tools: FiftyOne, Label Studio, and all that read the COCO format.

Commands read the names of the exports here, so torch is imported only where there are findings to export.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from anomalib_softpatch._version import __version__
from anomalib_softpatch.files import atomic_output, beginning
from anomalib_softpatch.images.reading import image_size
from anomalib_softpatch.options import check_choice

if TYPE_CHECKING:
    from anomalib_softpatch.report.findings import Findings
    from anomalib_softpatch.report.suspicious_regions import SuspiciousRegion

logger = logging.getLogger(__name__)

WRITER = f"anomalib-softpatch {__version__}"
LABEL = "suspicious"
_FIELD = "fiftyone.core.fields."
# FiftyOne adds only declared fields to a dataset
FIFTYONE_FIELDS = {
    "filepath": f"{_FIELD}StringField",
    "tags": f"{_FIELD}ListField({_FIELD}StringField)",
    "metadata": f"{_FIELD}EmbeddedDocumentField(fiftyone.core.metadata.ImageMetadata)",
    "noise_score": f"{_FIELD}FloatField",
    "noise_rank": f"{_FIELD}IntField",
    "duplicate_group": f"{_FIELD}IntField",
    "suspicious_regions": f"{_FIELD}EmbeddedDocumentField(fiftyone.core.labels.Detections)",
}


@dataclass(frozen=True)
class ExportedImage:
    """The findings about one image."""

    path: Path  # absolute
    width: int  # pixels
    height: int
    rank: int  # 1 for the most suspicious image
    score: float
    duplicate_group: int | None  # None for an image without copies
    findings: list[str]  # names of its oddities
    regions: "list[SuspiciousRegion]"  # the rarest first


def exported_images(findings: "Findings") -> list[ExportedImage]:
    """Collect the images to export, the most suspicious one first.

    Missing images and those whose names are not valid Unicode, which JSON needs, are left out with a warning.
    """
    from anomalib_softpatch.report.suspicious_regions import suspicious_regions  # noqa: PLC0415  # takes seconds

    images = []
    for rank, index in enumerate(findings.order, start=1):
        path = Path(os.path.abspath(findings.paths[index]))  # noqa: PTH100  # resolve() would follow links
        try:
            str(path).encode()
            width, height = image_size(path)
        except (OSError, UnicodeEncodeError) as error:
            logger.warning("%r is left out of the exports: %s", str(path), error)
            continue
        images.append(
            ExportedImage(
                path=path,
                width=width,
                height=height,
                rank=rank,
                score=findings.image_scores[index].item(),
                duplicate_group=findings.duplicate_groups[index],
                findings=findings.oddities[index] if findings.oddities else [],
                regions=suspicious_regions(findings, index, (width, height)),
            )
        )
    return images


def as_share(rarity: float) -> float:
    """Return a rarity as a score in [0, 1], which tools expect: the share of all patches that are less rare."""
    return 1 - 10**-rarity


def fiftyone(images: Sequence[ExportedImage]) -> dict[str, Any]:
    """Return a dataset for FiftyOne's ``Dataset.from_json``.

    Its samples have the fields ``noise_score``, ``noise_rank``, ``duplicate_group`` and ``suspicious_regions``
    (detections, in shares of the image). Other oddities are tags.
    """
    samples = [
        {
            "filepath": str(image.path),
            "tags": image.findings,
            "metadata": {"_cls": "ImageMetadata", "width": image.width, "height": image.height},
            "noise_score": image.score,
            "noise_rank": image.rank,
            "duplicate_group": image.duplicate_group,
            "suspicious_regions": {
                "_cls": "Detections",
                "detections": [
                    {
                        "_cls": "Detection",
                        "label": LABEL,
                        "bounding_box": _box_in_shares(image, region),
                        "confidence": as_share(region.rarity),
                        "tags": [],
                    }
                    for region in image.regions
                ],
            },
        }
        for image in images
    ]
    return {
        "info": {"written_by": WRITER},
        "name": "noise_report",
        "media_type": "image",
        "sample_fields": FIFTYONE_FIELDS,
        "samples": samples,
    }


def label_studio(images: Sequence[ExportedImage]) -> list[dict[str, Any]]:
    """Return tasks with pre-annotations for Label Studio.

    An image is given by the URL at which Label Studio serves local files, relative to the parent of the images' folder.
    Rectangles, in percent, belong to a control ``region`` of an object ``image``.
    """
    root = _root(images).parent
    return [
        {
            "predictions": [
                {
                    "model_version": WRITER,
                    "score": as_share(image.score),
                    "result": [
                        _rectangle(image, region, f"{image.rank}-{number}")
                        for number, region in enumerate(image.regions, start=1)
                    ],
                }
            ],
            "data": {
                "image": f"/data/local-files/?d={quote(image.path.relative_to(root).as_posix())}",
                "noise_score": image.score,
                "noise_rank": image.rank,
                "duplicate_group": image.duplicate_group,
                "findings": "; ".join(image.findings),
            },
        }
        for image in images
    ]


def _rectangle(image: ExportedImage, region: "SuspiciousRegion", name: str) -> dict[str, Any]:
    """Return a region in Label Studio's format."""
    sides = ("x", "y", "width", "height")
    percent = {side: 100 * share for side, share in zip(sides, _box_in_shares(image, region), strict=True)}
    return {
        "id": name,
        "type": "rectanglelabels",
        "from_name": "region",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": as_share(region.rarity),
        "value": {"rotation": 0, **percent, "rectanglelabels": [LABEL]},
    }


def _box_in_shares(image: ExportedImage, region: "SuspiciousRegion") -> list[float]:
    """Return left, top, width and height of a region in shares of the image."""
    return [
        region.left / image.width,
        region.top / image.height,
        region.width / image.width,
        region.height / image.height,
    ]


def coco(images: Sequence[ExportedImage]) -> dict[str, Any]:
    """Return a dataset in COCO's object detection format, with a ``score`` for each image and each suspicious region.

    File names are relative to the common folder of the images, which is in ``info``.
    """
    root = _root(images)
    numbered = [(number, region) for number, image in enumerate(images, start=1) for region in image.regions]
    annotations = [
        {
            "id": place,
            "image_id": number,
            "category_id": 1,
            "bbox": [region.left, region.top, region.width, region.height],
            "area": region.width * region.height,
            "iscrowd": 0,
            "segmentation": [],
            "score": as_share(region.rarity),
        }
        for place, (number, region) in enumerate(numbered, start=1)
    ]
    entries = [
        {
            "id": number,
            "file_name": image.path.relative_to(root).as_posix(),
            "width": image.width,
            "height": image.height,
            "score": image.score,
            "rank": image.rank,
        }
        for number, image in enumerate(images, start=1)
    ]
    return {
        "info": {"contributor": WRITER, "description": "Noise report", "folder": str(root)},
        "licenses": [],
        "categories": [{"id": 1, "name": LABEL, "supercategory": ""}],
        "images": entries,
        "annotations": annotations,
    }


EXPORTS: dict[str, Callable[[Sequence[ExportedImage]], Any]] = {
    "fiftyone": fiftyone,
    "label_studio": label_studio,
    "coco": coco,
}


def check_exports(given: str | Sequence[str], folder: Path) -> list[str]:
    """Return the names of one or several exports without repetitions.

    Args:
        given: Name of an export, or several.
        folder: Folder to write them to.

    Raises:
        ValueError: If there is no such export, or if its file exists and was not written by an earlier report.
    """
    names = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for name in names:
        check_choice("export", name, EXPORTS)
    for file in (folder / f"{name}.json" for name in names):
        if file.exists() and b'"anomalib-softpatch ' not in beginning(file):
            msg = f"{str(file)!r} exists and is not part of a noise report. Give another folder for the report."
            raise ValueError(msg)
    return names


def write_exports(findings: "Findings", names: Sequence[str], folder: Path) -> list[Path]:
    """Write ``<name>.json`` for each name of an export, and return the files.

    Raises:
        ValueError: See :func:`check_exports`.
    """
    check_exports(names, folder)
    images = exported_images(findings) if names else []
    files = [folder / f"{name}.json" for name in names]
    for name, file in zip(names, files, strict=True):
        with atomic_output(file) as temporary:
            temporary.write_text(json.dumps(EXPORTS[name](images), indent=1) + "\n", encoding="ascii")
    return files


def _root(images: Sequence[ExportedImage]) -> Path:
    """Return the common folder of the images."""
    return Path(os.path.commonpath([image.path.parent for image in images])) if images else Path()
