# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Rank the images of a folder by how suspicious they are, without training a detector."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, Normalize, Resize, Transform
from tqdm import tqdm

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
from anomalib_softpatch.components.progress import progress_bar
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
MEAN, STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


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

    Copies of an image have one vote: one image of each duplicate group is compared with the others, and the whole group
    gets its scores.

    Args:
        images: Folder, which is searched with its subfolders, or the image files. Most images should be normal and show
            one kind of object.
        backbone: Name of a timm model, or ``local-dir:<folder>`` for weights on disk.
        layers: Names of the layers to extract features from, the finest grid first.
        discriminators: How noise is scored, one or more of ``DISCRIMINATORS``: ``knn`` (the distance to the second
            nearest other image), ``lof``, ``gaussian``, ``nearest``; the ranks of several are averaged.
        threshold: Share of all patches that counts as removed.
        min_images: For ``knn``, how many images must show something before it is normal: a number or a share.
            ``"auto"`` is 3, that is, the distance to the second nearest other image.
        lof_k: Number of neighbors for ``lof``.
        neighborhood: Compare patches with those of other images up to this many grid positions away (0: at the same
            position), or anywhere in the image (``"image"``).
        image_size: Height and width in pixels to resize images to, or one number for both. Default: as many pixels as
            256 x 256 has, in the aspect ratio of the images; with tiles, the images' own size.
        tile: Cut the resized images into tiles of this height and width in pixels, or one number for both. The backbone
            gets the tiles one by one. Default: no tiles.
        stride: Pixels from one tile to the next. Default: the size of a tile, so that tiles do not overlap.
        batch_size: Number of images that the backbone processes at a time.
        num_workers: Number of additional processes that read images.
        device: Device for the computation, for example ``cpu`` or ``cuda``; ``auto`` for a GPU if there is one.
        feature_cache: Folder that keeps the backbone's features, so that they need not be computed again, see
            :class:`~anomalib_softpatch.components.FeatureCache`. Default: none are kept.
        against: Another folder, such as one of test images, to search for copies of the images.
        progress: Show progress on standard error.

    Returns:
        Findings; their ``table`` is a data frame with one row per image, the most suspicious first.

    Raises:
        ValueError: If an argument is out of range or does not fit the others, or if fewer than two different images can
            be read.
        OSError: If the weights of the backbone cannot be obtained, or if the disk is too full for the features.

    Example:
        >>> from anomalib_softpatch import rank_images
        >>> findings = rank_images("my_images")  # doctest: +SKIP
        >>> findings.table[["path", "image_score", "duplicate_group"]].head()  # doctest: +SKIP
    """
    if isinstance(images, str | Path):
        paths, skipped = find_images(Path(images))
        source, named = f"folder={str(images)!r}", str(images)
    else:
        paths, skipped = [Path(path) for path in images], []
        source, named = "images", f"{len(paths)} files"
    other_paths, other_skipped = ([], []) if against is None else find_images(Path(against))
    extraction = Extraction(backbone, list(layers), image_size, tile, stride, batch_size, num_workers, device)
    check(threshold=threshold, min_images=min_images, lof_k=lof_k, neighborhood=neighborhood)
    check_discriminators(discriminators)
    reader = Reader(paths, extraction, feature_cache, progress)
    own = reader.read(paths)
    skipped = sorted([*skipped, *own.unreadable])
    _refuse_few(own, source, skipped)
    other = None if against is None else reader.read(other_paths)
    with torch.inference_mode():
        features = own.features.project()
        groups = duplicate_groups(own.contents, features, progress)
        other_folder = (
            None if other is None else _compare(own, features, other, str(against), len(other_skipped), progress)
        )
        first = representatives(groups)
        if len(first) < len(own.images):
            del features  # memory may not hold both
            features = own.features.project(images=first)
        knn_k = max(support_of(min_images, len(features)), default=1)
        scored = score_patches(
            features, discriminators, lof_k=lof_k, knn_k=knn_k, neighborhood=neighborhood, progress=progress
        )
    scores = scored.fused.float().cpu()
    findings = Findings(
        paths=[str(item.path) for item in own.images],
        scores=scores[groups],
        kept=keep_mask(scores, threshold)[groups],
        regions=[visible_region(reader.transform, item.statistics.size) for item in own.images],
        groups=groups,
        oddities=find_oddities([item.statistics for item in own.images]),
        settings={
            "Images": named,
            "Backbone": f"{backbone}, layers {', '.join(layers)}",
            **reader.settings,
            "Discriminators": ", ".join(discriminators),
            "Least images": str(min_images),
            "Neighborhood": str(neighborhood),
            "Patches removed": f"{100 * threshold:g} %",
        },
        notes=reader.notes,
        remarks=[(str(item.path), item.remark) for item in own.images if item.remark],
        skipped=skipped,
        other_folder=other_folder,
        largest_value=reader.largest_value,
    )
    return with_look_alikes(findings, features, neighborhood)


@dataclass(frozen=True)
class ReadImage:
    """An image that was read."""

    path: Path
    tensor: torch.Tensor | None  # transformed, shape (3, height, width); None after its features were extracted
    content: str  # hash of its pixels
    statistics: ImageStatistics
    remark: str  # what was lost in reading it; empty for ordinary images


@dataclass(frozen=True)
class ReadFolder:
    """The readable images of a folder, without their pixels; their features; and why the other files are unreadable."""

    images: list[ReadImage]
    features: FeatureStore
    unreadable: list[tuple[str, str]]

    @property
    def contents(self) -> list[str]:
        """Hash of the pixels of each image."""
        return [item.content for item in self.images]


@dataclass(frozen=True)
class FileDataset(Dataset[ReadImage | tuple[str, str]]):
    """Images that are read, measured and transformed; for an unreadable file, its path and the reason."""

    paths: list[Path]
    transform: Transform
    largest_value: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ReadImage | tuple[str, str]:
        path = self.paths[index]
        try:
            image, remark = read_image(path, self.largest_value)
        except UnreadableImageError as error:
            return str(path), str(error)
        tensor = torch.from_numpy(image)
        return ReadImage(path, self.transform(tensor), hash_pixels(image), image_statistics(tensor), remark)


class Reader:
    """Reads images and extracts their features, in the same way for all folders.

    The first images determine size and depth. ``settings`` and ``notes`` describe them for a report.
    """

    def __init__(
        self, paths: list[Path], extraction: Extraction, feature_cache: str | Path | None, progress: bool
    ) -> None:
        assert extraction.backbone is not None
        self.extraction = extraction
        self.progress = progress
        self.device = check_device(extraction.device)
        try:
            extractor = PatchFeatureExtractor(extraction.backbone, extraction.layers or ()).eval().to(self.device)
        except RuntimeError as error:  # its message explains what to do
            raise OSError(str(error)) from error
        self.extract = extractor if feature_cache is None else FeatureCache(extractor, feature_cache)
        typical, tiles = typical_image(paths), extraction.tiles
        self.tiler = make_tiler(tiles)
        size = choose_size(typical, extraction.size, tiles is not None, extractor.nearest_size)
        if self.tiler is not None:
            check_tiles(self.tiler, extractor, size)
        self.transform = Compose([Resize(size, antialias=True), Normalize(MEAN, STANDARD_DEVIATION)])
        self.notes = typical.remarks(size, lambda: grid_of(extractor, size, self.tiler), tiles is not None)
        for note in self.notes:
            self._say(note)
        self.settings = {"Image size": f"{described(size)} pixels (height x width)"}
        if tiles is not None:
            self.settings["Tiles"] = f"{described(tiles['tile_size'])}, every {described(tiles['stride'])}"
        self.largest_value, deep = find_largest_value(paths)
        if self.largest_value > EIGHT_BITS:
            depth = f"{self.largest_value.bit_length()} bits per value, where white is {self.largest_value}"
            self.settings["Deep images"] = f"{deep}, read with {depth}"
            self._say(f"{counted(deep, 'image')} read with {depth}.")

    def read(self, paths: list[Path]) -> ReadFolder:
        """Read images and extract their features."""
        folder = ReadFolder([], FeatureStore(memory_budget=default_memory_budget()), [])
        dataset = FileDataset(paths, self.transform, self.largest_value)
        batches = DataLoader(
            dataset, self.extraction.batch_size, num_workers=self.extraction.num_workers, collate_fn=list
        )
        with torch.inference_mode(), progress_bar(len(paths), "Looking at images", "image", self.progress) as bar:
            for batch in batches:
                good = [item for item in batch if isinstance(item, ReadImage)]
                folder.unreadable.extend(item for item in batch if not isinstance(item, ReadImage))
                if good:
                    images = torch.stack([item.tensor for item in good if item.tensor is not None])
                    features = extract_by_tiles(self.extract, images.to(self.device), self.tiler)
                    projection = projection_matrix(features.shape[3], features.device)
                    folder.features.append(features if projection is None else features @ projection)
                    if isinstance(self.extract, FeatureCache) and not folder.images:
                        self._say(self.extract.check_space(len(good), len(paths)))
                    folder.images.extend(replace(item, tensor=None) for item in good)
                bar.update(len(batch))
        return folder

    def _say(self, text: str) -> None:
        """Write a line without tearing the progress bars."""
        if self.progress:
            tqdm.write(text, file=sys.stderr)


def _refuse_few(own: ReadFolder, source: str, skipped: Sequence[tuple[str, str]]) -> None:
    different = len(set(own.contents))
    if different < FEWEST_IMAGES:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:5])
        msg = (
            f"{source} has {len(own.images)} readable images, {different} without their copies, but at least "
            f"{FEWEST_IMAGES} are needed.{reasons}"
        )
        raise ValueError(msg)


def _compare(
    own: ReadFolder, features: torch.Tensor, other: ReadFolder, folder: str, not_images: int, progress: bool
) -> OtherFolder:
    """Find the images of another folder that are copies of the images whose features are given."""
    found = []
    if other.images:
        found = find_copies(own.contents, features, other.contents, other.features.project(), progress)
    return OtherFolder(
        folder=folder,
        images=len(other.images),
        skipped=not_images + len(other.unreadable),
        near=len({*own.contents, *other.contents}) >= FEWEST_COMPARED,
        copies=[Copy(str(other.images[copy].path), str(own.images[image].path), exact) for copy, image, exact in found],
    )


def check_device(device: str) -> torch.device:
    """Return a device by its name; ``auto`` is a GPU if there is one.

    Raises:
        ValueError: If the device cannot be used.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError if PyTorch was built without CUDA
        reason = str(error).split("\n", maxsplit=1)[0]
        msg = f"device={device!r} cannot be used here ({reason}). Choose 'cpu', or 'auto'."
        raise ValueError(msg) from error
    return torch.device(device)
