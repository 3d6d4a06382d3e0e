# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch report``: rank the images of a folder without training a detector."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Transform

from anomalib_softpatch.components import DISCRIMINATORS, PatchFeatureExtractor, keep_mask, score_patches
from anomalib_softpatch.components.patch_scores import projection_matrix
from anomalib_softpatch.files import atomic_output
from anomalib_softpatch.models import SoftPatch
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.folder import find_images, read_image
from anomalib_softpatch.report.geometry import visible_region
from anomalib_softpatch.report.writer import write_report


def report(
    folder: Path,
    output: Path = Path("noise_report"),
    backbone: str = "wide_resnet50_2",
    layers: list[str] = ["layer2", "layer3"],  # noqa: B006  # a tuple would ask for another syntax on the command line
    discriminators: list[str] = ["lof", "gaussian"],  # noqa: B006
    threshold: float = 0.15,
    lof_k: int = 6,
    neighborhood: int | Literal["image"] = 0,
    image_size: int = 256,
    suspicious: float = 0.1,
    write_list: Path | None = None,
    copy_rest: Path | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Rank the images of a folder by how suspicious they are, and write a noise report.

    The images of the folder and of all folders in it are compared with each other; no detector is kept. Nothing in
    the folder is changed. Files that are no images or cannot be read are listed in the report.

    Args:
        folder: Folder of images of one kind of thing, most of them normal.
        output: Folder to write the report to: report.html, images.csv, skipped.csv and two contact sheets.
        backbone: Name of a timm model, or local-dir:<folder> for weights on disk.
        layers: Names of the layers to extract features from, the finest grid first.
        discriminators: How noise is scored: lof, gaussian or nearest; the ranks of several are averaged.
        threshold: Share of all patches that counts as removed in the report.
        lof_k: Neighbours of the local outlier factor.
        neighborhood: Compare patches with those of other images at the same grid position (0), up to so many
            positions away, or of the whole image, for objects that lie in any direction.
        image_size: Side in pixels of the square that images are resized to.
        suspicious: Share of the images, the highest-scored ones, that write_list and copy_rest take as suspicious.
        write_list: File to write the paths of the suspicious images to, one in a line, the most suspicious first.
        copy_rest: New folder to copy all other images to, in the same subfolders. Nothing is moved or deleted.
        batch_size: Number of images to send through the backbone at a time.
        num_workers: Processes that read images, 0 for none beside the command's own.
        device: Device for the computation, for example cpu or cuda; auto for a GPU if there is one.
    """
    _check(folder, output, discriminators, threshold, suspicious, copy_rest)
    console = Console(stderr=True)
    images, skipped = find_images(folder)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    extractor = PatchFeatureExtractor(backbone, layers).eval().to(device)
    transform = SoftPatch.configure_pre_processor((image_size, image_size)).transform
    loader = DataLoader(
        FolderDataset(images, transform), batch_size=batch_size, num_workers=num_workers, collate_fn=list
    )

    features, sizes, read, remarks = [], [], [], []
    with torch.inference_mode():
        for batch in _with_progress(loader, len(images), console):
            good = [item for item in batch if isinstance(item[1], torch.Tensor)]
            skipped += [(str(path), reason) for path, reason, *_ in batch if isinstance(reason, str)]
            if not good:
                continue
            grid = extractor(torch.stack([tensor for _, tensor, *_ in good]).to(device))
            matrix = projection_matrix(grid.shape[-1], grid.device)
            features.append(grid if matrix is None else grid @ matrix)
            read += [path for path, *_ in good]
            sizes += [size for *_, size, _ in good]
            remarks += [(str(path), remark) for path, *_, remark in good if remark]
        skipped.sort()
        if len(read) < 2:  # noqa: PLR2004
            reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:5])
            msg = f"folder={str(folder)!r} has {len(read)} readable images, but at least 2 are compared.{reasons}"
            raise ValueError(msg)
        with console.status(f"Comparing {len(read)} images"):
            scores = score_patches(torch.cat(features), discriminators, lof_k=lof_k, neighborhood=neighborhood)
            fused = scores.fused.float().cpu()

    findings = Findings(
        paths=[str(path) for path in read],
        scores=fused,
        kept=keep_mask(fused, threshold),
        regions=[visible_region(transform, size) for size in sizes],
        settings={
            "Folder": str(folder),
            "Backbone": f"{backbone}, layers {', '.join(layers)}",
            "Image size": f"{image_size} x {image_size} pixels",
            "Discriminators": ", ".join(discriminators),
            "Neighbourhood": str(neighborhood),
        },
        remarks=remarks,
        skipped=skipped,
    )
    with console.status("Writing the report"):
        page = write_report(findings, output)
    count = round(suspicious * len(read))
    ranked = [read[index] for index in findings.order]
    if write_list is not None:
        _write_list(ranked[:count], write_list)
        sys.stdout.write(f"{count} suspicious paths: {write_list}\n")
    if copy_rest is not None:
        copied = _copy(sorted(ranked[count:]), folder, copy_rest)
        sys.stdout.write(f"{copied} other images copied: {copy_rest}\n")
    sys.stdout.write(f"{len(read)} images ranked, {len(skipped)} files skipped. Report: {page}\n")


class FolderDataset(Dataset):
    """Read and transform images.

    Args:
        paths: Image files.
        transform: Transform to a tensor of one size.
    """

    def __init__(self, paths: list[Path], transform: Transform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, torch.Tensor | str, tuple[int, int], str]:
        """Return path, image or the reason why it cannot be read, width and height, and a remark."""
        path = self.paths[index]
        try:
            tensor, remark = read_image(path)
        except ValueError as error:
            return path, str(error), (0, 0), ""
        return path, self.transform(tensor), (tensor.shape[2], tensor.shape[1]), remark


def _check(
    folder: Path,
    output: Path,
    discriminators: list[str],
    threshold: float,
    suspicious: float,
    copy_rest: Path | None,
) -> None:
    """Refuse bad arguments before images are read."""
    if not folder.is_dir():
        msg = f"folder={str(folder)!r} is not a folder. Give one that has images in it."
        raise ValueError(msg)
    unknown = [name for name in discriminators if name not in DISCRIMINATORS]
    if unknown or not discriminators:
        msg = f"discriminators={discriminators} must be one or more of {', '.join(DISCRIMINATORS)}."
        raise ValueError(msg)
    for name, value in (("threshold", threshold), ("suspicious", suspicious)):
        if not 0 <= value < 1:
            msg = f"{name}={value} must be a share of at least 0 and below 1, for example 0.1."
            raise ValueError(msg)
    inside = [path for path in (output, copy_rest) if path is not None and _is_inside(path, folder)]
    if inside:
        msg = f"{str(inside[0])!r} lies in folder={str(folder)!r}, in which nothing is changed. Choose another place."
        raise ValueError(msg)
    if copy_rest is not None and copy_rest.exists() and (not copy_rest.is_dir() or any(copy_rest.iterdir())):
        msg = f"copy_rest={str(copy_rest)!r} exists and is not empty. Give a new folder."
        raise ValueError(msg)


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _with_progress(loader: DataLoader, total: int, console: Console) -> Iterator[list]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Looking at images", total=total)
        for batch in loader:
            yield batch
            progress.advance(task, len(batch))


def _write_list(paths: list[Path], file: Path) -> None:
    with atomic_output(file) as temporary:
        temporary.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in paths))


def _copy(paths: list[Path], folder: Path, target: Path) -> int:
    """Copy images to the same subfolders of another folder."""
    for path in paths:
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return len(paths)
