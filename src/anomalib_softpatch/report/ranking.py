# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Rank the images of a folder by how suspicious they are, without training a detector."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from anomalib.data.utils.tiler import Tiler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, Normalize, Resize, Transform

from anomalib_softpatch.backbones import DEFAULT_BACKBONE, DEFAULT_LAYERS
from anomalib_softpatch.components import (
    FeatureCache,
    FeatureStore,
    PatchFeatureExtractor,
    keep_mask,
    score_patches,
)
from anomalib_softpatch.components.discriminators.table import check_discriminators
from anomalib_softpatch.components.duplicates import FEWEST_IMAGES as FEWEST_COMPARED
from anomalib_softpatch.components.duplicates import duplicate_groups, representatives
from anomalib_softpatch.components.feature_store import default_memory_budget
from anomalib_softpatch.components.patch_scores import projection_matrix
from anomalib_softpatch.components.support_radii import support_of
from anomalib_softpatch.components.tiles import check_tiles, extract_by_tiles, grid_of, make_tiler
from anomalib_softpatch.extraction import DEFAULTS, Extraction, Size
from anomalib_softpatch.image_size import choose_size, described, typical_image
from anomalib_softpatch.images.finding import find_images
from anomalib_softpatch.images.hashing import hash_pixels
from anomalib_softpatch.images.reading import EIGHT_BITS, UnreadableImageError, find_largest_value, read_image
from anomalib_softpatch.options import LOF_K, THRESHOLD, check
from anomalib_softpatch.report.copies import Copy, OtherFolder, find_copies
from anomalib_softpatch.report.findings import Findings
from anomalib_softpatch.report.geometry import visible_region
from anomalib_softpatch.report.look_alikes import with_look_alikes
from anomalib_softpatch.report.oddities import ImageStatistics, find_oddities, image_statistics
from anomalib_softpatch.text import counted

FEWEST_IMAGES = 2
# Of ImageNet, which timm's backbones were trained on
MEAN, STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def rank_images(
    images: str | Path | Sequence[str | Path],
    *,
    backbone: str = DEFAULT_BACKBONE,
    layers: Sequence[str] = DEFAULT_LAYERS,
    discriminators: Sequence[str] = ("knn",),
    threshold: float = THRESHOLD,
    min_images: float | Literal["auto"] = "auto",
    lof_k: int = LOF_K,
    neighborhood: int | Literal["image"] = 1,
    image_size: Size = None,
    tile: Size = None,
    stride: Size = None,
    batch_size: int = DEFAULTS.batch_size,
    num_workers: int = DEFAULTS.num_workers,
    device: str = DEFAULTS.device,
    feature_cache: str | Path | None = None,
    against: str | Path | None = None,
    progress: bool = False,
) -> Findings:
    """Compare images with each other, and find those that do not look like the rest.

    Copies of an image have one vote: one of each group of duplicates is compared with the others, and all of the group
    get its scores.

    Args:
        images: Folder, which is searched with all folders in it, or the image files. Most of them should be normal and
            show one kind of thing.
        backbone: Name of a timm model, or ``local-dir:<folder>`` for weights on disk.
        layers: Names of the layers to extract features from, the finest grid first.
        discriminators: How noise is scored, one or more of ``DISCRIMINATORS``: ``knn`` (the distance to the second
            nearest other image), ``lof``, ``gaussian``, ``nearest``; the ranks of several are averaged.
        threshold: Share of all patches that counts as removed.
        min_images: Of ``knn``: normal is what at least so many images show, a number or a share of them. ``"auto"`` is
            3, that is the distance to the second nearest other image.
        lof_k: Neighbors of ``lof``.
        neighborhood: Compare patches with those of other images up to so many grid positions away (0: at the same
            position), or of the whole image (``"image"``).
        image_size: Height and width in pixels that images are resized to, or one number for both. Default: as many
            pixels as 256 x 256 has, in the aspect ratio of the images; with tiles, the images' own size.
        tile: Cut the resized images into tiles of this height and width, or of one number for both, which go through
            the backbone one by one. Default: no tiles.
        stride: Pixels from one tile to the next. Default: those of a tile, so that tiles do not overlap.
        batch_size: Number of images to send through the backbone at a time.
        num_workers: Processes that read images, 0 for none beside this one.
        device: Device for the computation, for example ``cpu`` or ``cuda``; ``auto`` for a GPU if there is one.
        feature_cache: Folder in which the backbone's features are kept, so that they need not be computed again, see
            :class:`~anomalib_softpatch.components.FeatureCache`. Default: none are kept.
        against: Another folder, such as one of test images, in which copies of the images are looked for.
        progress: Show progress on standard error.

    Returns:
        Findings; their ``table`` is a data frame with one row per image, the most suspicious first.

    Raises:
        ValueError: If an argument is out of range or does not fit the others, or fewer than two different images can be
            read.
        OSError: If the weights of the backbone cannot be had, or if the disk has no room for the features.

    Example:
        >>> from anomalib_softpatch import rank_images
        >>> findings = rank_images("my_images")  # doctest: +SKIP
        >>> findings.table[["path", "image_score", "duplicate_group"]].head()  # doctest: +SKIP
    """
    if isinstance(images, str | Path):
        paths, skipped = find_images(Path(images))
        source = f"folder={str(images)!r}"
    else:
        paths, skipped = [Path(path) for path in images], []
        source = "images"
    other_paths, other_skipped = ([], []) if against is None else find_images(Path(against))
    extraction = Extraction(backbone, list(layers), image_size, tile, stride, batch_size, num_workers, device)
    check(threshold=threshold, min_images=min_images, lof_k=lof_k, neighborhood=neighborhood)
    check_discriminators(discriminators)
    torch_device = check_device(device)
    console = Console(stderr=True, quiet=not progress)
    try:
        extractor = PatchFeatureExtractor(backbone, layers).eval().to(torch_device)
    except RuntimeError as error:  # its message says how to go on
        raise OSError(str(error)) from error
    tiles, (size, tiler, notes) = extraction.tiles, _choose_size(paths, extraction, extractor)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    transform = Compose([Resize(size, antialias=True), Normalize(MEAN, STANDARD_DEVIATION)])
    largest_value, deep = find_largest_value(paths)
    depth = f"{largest_value.bit_length()} bits per value, in which white is {largest_value}"
    if largest_value > EIGHT_BITS:
        console.print(f"{counted(deep, 'image')} read as of {depth}.", highlight=False, markup=False)
    extract = extractor if feature_cache is None else FeatureCache(extractor, feature_cache)

    def read_all(files: list[Path]) -> tuple[list[ReadImage], FeatureStore, list[tuple[str, str]]]:
        dataset = FileDataset(files, transform, largest_value)
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
        return _read(loader, len(files), extract, tiler, torch_device, console)

    read, store, unreadable = read_all(paths)
    skipped += unreadable
    skipped.sort()
    different = len({item.content for item in read})
    if different < FEWEST_IMAGES:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:5])
        msg = (
            f"{source} has {len(read)} readable images, {different} without their copies, but at least "
            f"{FEWEST_IMAGES} are compared.{reasons}"
        )
        raise ValueError(msg)
    other = None if against is None else read_all(other_paths)
    with torch.inference_mode():
        compared = store.project()
        groups = duplicate_groups([item.content for item in read], compared, progress)
        other_folder = other and _look_for_copies(str(against), *other, len(other_skipped), read, compared, progress)
        first = representatives(groups)
        if len(first) < len(read):
            del compared  # there may not be room for both
            compared = store.project(images=first)
        knn_k = max(support_of(min_images, len(compared)), default=1)
        scored = score_patches(
            compared, discriminators, lof_k=lof_k, knn_k=knn_k, neighborhood=neighborhood, progress=progress
        )
        scores = scored.fused.float().cpu()
    findings = Findings(
        paths=[str(item.path) for item in read],
        scores=scores[groups],
        kept=keep_mask(scores, threshold)[groups],
        regions=[visible_region(transform, (item.statistics.width, item.statistics.height)) for item in read],
        groups=groups,
        oddities=find_oddities([item.statistics for item in read]),
        settings={
            "Images": str(images) if isinstance(images, str | Path) else f"{len(paths)} files",
            "Backbone": f"{backbone}, layers {', '.join(layers)}",
            **({"Deep images": f"{deep}, read as of {depth}"} if largest_value > EIGHT_BITS else {}),
            "Image size": f"{described(size)} pixels (height x width)",
            **({"Tiles": f"{described(tiles['tile_size'])}, every {described(tiles['stride'])}"} if tiles else {}),
            "Discriminators": ", ".join(discriminators),
            "Least images": str(min_images),
            "Neighborhood": str(neighborhood),
            "Patches removed": f"{100 * threshold:g} %",
        },
        notes=notes,
        remarks=[(str(item.path), item.remark) for item in read if item.remark],
        skipped=skipped,
        other_folder=other_folder,
        largest_value=largest_value,
    )
    return with_look_alikes(findings, compared, neighborhood)


def _choose_size(
    paths: list[Path], extraction: Extraction, extractor: PatchFeatureExtractor
) -> tuple[tuple[int, int], Tiler | None, list[str]]:
    """Return the size that images are resized to, what cuts them into tiles, and what a reader should know of both."""
    typical, tiler = typical_image(paths), make_tiler(extraction.tiles)
    size = choose_size(typical, extraction.size, tiler is not None, extractor.nearest_size)
    if tiler is not None:
        check_tiles(tiler, extractor, size)
    return size, tiler, typical.remarks(size, lambda: grid_of(extractor, size, tiler), tiled=tiler is not None)


def _look_for_copies(
    folder: str,
    other_read: list["ReadImage"],
    other_store: FeatureStore,
    other_unreadable: list[tuple[str, str]],
    other_files: int,
    read: list["ReadImage"],
    features: torch.Tensor,
    progress: bool,
) -> OtherFolder:
    """Say which images of another folder are copies.

    Args:
        folder: The other folder.
        other_read: Its images.
        other_store: Their features.
        other_unreadable: Its images that cannot be read.
        other_files: Number of its files that are no images.
        read: The images of the set.
        features: Their features.
        progress: Show a progress bar.
    """
    contents, other_contents = ([item.content for item in items] for items in (read, other_read))
    found = find_copies(contents, features, other_contents, other_store.project(), progress) if other_read else []
    return OtherFolder(
        folder=folder,
        images=len(other_read),
        skipped=other_files + len(other_unreadable),
        near=len({*contents, *other_contents}) >= FEWEST_COMPARED,
        copies=[Copy(str(other_read[one].path), str(read[own].path), exact) for one, own, exact in found],
    )


@dataclass(frozen=True)
class ReadImage:
    """An image that was read.

    Args:
        path: Its file.
        tensor: Transformed to the size of all; ``None`` when it has been used.
        content: Hash of its pixels.
        statistics: What oddities are told by.
        remark: What was lost in reading it; empty for ordinary images.
    """

    path: Path
    tensor: torch.Tensor | None
    content: str
    statistics: ImageStatistics
    remark: str

    def without_tensor(self) -> "ReadImage":
        """Return the same without its pixels, of which there is no room for thousands."""
        return ReadImage(self.path, None, self.content, self.statistics, self.remark)


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be read.

    Args:
        path: Its file.
        reason: Why.
    """

    path: Path
    reason: str


class FileDataset(Dataset[ReadImage | UnreadableImage]):
    """Read, measure and transform images.

    Args:
        paths: Image files.
        transform: Transform to a tensor of one size.
        largest_value: See :func:`~anomalib_softpatch.images.reading.read_image`.
    """

    def __init__(self, paths: list[Path], transform: Transform, largest_value: int) -> None:
        self.paths = paths
        self.transform = transform
        self.largest_value = largest_value

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> ReadImage | UnreadableImage:
        """Return an image, or why it cannot be read."""
        path = self.paths[index]
        try:
            image, remark = read_image(path, self.largest_value)
        except UnreadableImageError as error:
            return UnreadableImage(path, str(error))
        tensor = torch.from_numpy(image)
        return ReadImage(path, self.transform(tensor), hash_pixels(image), image_statistics(tensor), remark)


def _read(
    batches: Iterable[list[ReadImage | UnreadableImage]],
    total: int,
    extract: PatchFeatureExtractor | FeatureCache,
    tiler: Tiler | None,
    device: torch.device,
    console: Console,
) -> tuple[list[ReadImage], FeatureStore, list[tuple[str, str]]]:
    """Return the images that can be read without their pixels, their features, and the others."""
    read: list[ReadImage] = []
    features = FeatureStore(memory_budget=default_memory_budget())
    unreadable = []
    with torch.inference_mode():
        for batch in _with_progress(batches, total, console):
            good = [item for item in batch if isinstance(item, ReadImage)]
            unreadable += [(str(item.path), item.reason) for item in batch if isinstance(item, UnreadableImage)]
            if good:
                images = torch.stack([item.tensor for item in good if item.tensor is not None])
                features.append(_project(extract_by_tiles(extract, images.to(device), tiler)))
                if isinstance(extract, FeatureCache) and not read:
                    console.print(extract.check_space(len(good), total), highlight=False, markup=False)
                read += [item.without_tensor() for item in good]
    return read, features, unreadable


def _project(features: torch.Tensor) -> torch.Tensor:
    """Return projected features of shape ``(images, height, width, dimensions)``."""
    matrix = projection_matrix(features.shape[3], features.device)
    return features if matrix is None else features @ matrix


def check_device(device: str) -> torch.device:
    """Refuse a device that cannot be used here.

    Args:
        device: Its name, or ``auto`` for a GPU if there is one.

    Returns:
        The device.

    Raises:
        ValueError: If nothing can be computed on it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        reason = str(error).split("\n", maxsplit=1)[0]
        msg = f"device={device!r} cannot be used here ({reason}). Choose 'cpu', or 'auto'."
        raise ValueError(msg) from error
    return torch.device(device)


def _with_progress(
    batches: Iterable[list[ReadImage | UnreadableImage]], total: int, console: Console
) -> Iterator[list[Any]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Looking at images", total=total)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
