# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Findings: the content of a noise report, before it is drawn or written."""

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from anomalib_softpatch.components.duplicates import representatives
from anomalib_softpatch.images.reading import EIGHT_BITS
from anomalib_softpatch.pages.rendering import another_of_group
from anomalib_softpatch.report.copies import OtherFolder
from anomalib_softpatch.report.geometry import Region
from anomalib_softpatch.report.image_scores import image_scores, peaks, rarity
from anomalib_softpatch.report.noise_level import NoiseLevel, noise_level
from anomalib_softpatch.report.quality import FOUND_SHARES, detection_quality, images_to_inspect


@dataclass(frozen=True)
class NearestPatch:
    """A patch that is close to another one: index of its image, position in the grid, and distance of the features."""

    image: int
    row: int
    column: int
    distance: float


@dataclass(frozen=True)
class Findings:
    """Noise scores of a set of images, and what follows from them.

    All attributes have the images in the same order, which can be any.

    Args:
        paths: Image files.
        scores: Noise scores of all patches on any scale, shape ``(images, height, width)``.
        kept: Patches that were kept, boolean of the same shape.
        regions: Part of each image that the grid of patches covers.
        groups: Number of each image's duplicate group, shape ``(images,)``, see
            :func:`~anomalib_softpatch.components.duplicates.duplicate_groups`; ``None`` if not computed.
        oddities: Names of each image's oddities, see :mod:`~anomalib_softpatch.report.oddities`; ``None`` if not
            computed.
        labels: Which images are anomalous, boolean of shape ``(images,)``; ``None`` if unknown.
        true_patches: Which patches are anomalous, boolean of the shape of the scores; ``None`` if unknown.
        settings: Settings to show in the report, by name.
        notes: Sentences that a reader should know.
        self_check: Lines of the self-check of the fit that the findings belong to.
        remarks: Images that were read with a loss, and what was lost.
        skipped: Files that were not looked at, and the reasons.
        other_folder: Images of another folder that are copies of these; ``None`` if none was searched.
        largest_value: Value that was read as white in images of more than 8 bits per value.
        nearest: Patches of other images that are closest to the oddest patch of an image, the closest first, by the
            index of the image; only for the most suspicious images, and empty if the features are not known.
        look_alikes: Number of each image's group of look-alikes, -1 for none, shape ``(images,)``; ``None`` if not
            computed.
    """

    paths: list[str]
    scores: torch.Tensor
    kept: torch.Tensor
    regions: list[Region]
    groups: torch.Tensor | None = None
    oddities: list[list[str]] | None = None
    labels: torch.Tensor | None = None
    true_patches: torch.Tensor | None = None
    settings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    self_check: list[str] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    other_folder: OtherFolder | None = None
    largest_value: int = EIGHT_BITS
    nearest: dict[int, list[NearestPatch]] = field(default_factory=dict)
    look_alikes: torch.Tensor | None = None

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of the grid of patches."""
        return self.scores.shape[1], self.scores.shape[2]

    @cached_property
    def rarity(self) -> torch.Tensor:
        """How rare each patch is, see :func:`~anomalib_softpatch.report.image_scores.rarity`, shape of the scores.

        Each group of duplicates counts once.
        """
        if self.groups is None:
            return rarity(self.scores)
        return rarity(self.scores[representatives(self.groups)])[self.groups]

    @cached_property
    def image_scores(self) -> torch.Tensor:
        """Score of each image, the mean rarity of its rarest patches, shape ``(images,)``."""
        return image_scores(self.rarity)

    @cached_property
    def order(self) -> list[int]:
        """Indices of the images, the most suspicious first; ties are sorted by path."""
        return sorted(range(len(self.paths)), key=lambda index: (-self.image_scores[index].item(), self.paths[index]))

    @cached_property
    def quality(self) -> dict[str, float]:
        """How well the scores find the known noise, see :func:`detection_quality`; empty if none is known."""
        if self.labels is None:
            return {}
        return detection_quality(self.image_scores, self.labels, self.scores, self.true_patches)

    @cached_property
    def inspection(self) -> dict[float, int]:
        """How many images must be looked at, in order, by the share of the known noise to find; empty if unknown."""
        if self.labels is None or not self.quality:
            return {}
        ordered = self.labels[self.order]
        return {share: images_to_inspect(ordered, share) for share in FOUND_SHARES}

    @cached_property
    def noise_level(self) -> NoiseLevel:
        """How many images stand apart from the rest, if that can be told."""
        return noise_level(self.image_scores)

    @cached_property
    def names(self) -> list[str]:
        """Paths relative to the common folder of all images, for captions."""
        root = os.path.commonpath([Path(path).parent for path in self.paths])
        return [os.path.relpath(path, root) for path in self.paths]

    @cached_property
    def duplicate_groups(self) -> list[int | None]:
        """Number of each image's duplicate group, 1 for the most suspicious one; ``None`` for no group."""
        return self._numbered(self.groups)

    @cached_property
    def look_alike_groups(self) -> list[int | None]:
        """Number of each image's group of look-alikes, 1 for the most suspicious one; ``None`` for no group."""
        return self._numbered(self.look_alikes)

    def _numbered(self, chosen: torch.Tensor | None) -> list[int | None]:
        """Number the groups of two or more images by their most suspicious image; -1 means no group."""
        groups = [-1] * len(self.paths) if chosen is None else chosen.tolist()
        sizes = Counter(groups)
        numbers: dict[int, int] = {}
        for index in self.order:
            if groups[index] >= 0 and sizes[groups[index]] > 1:
                numbers.setdefault(groups[index], len(numbers) + 1)
        return [numbers.get(group) for group in groups]

    @cached_property
    def copies(self) -> dict[int, int]:
        """Another image of each image's duplicate group: the most suspicious one, or for that one, the second."""
        others = another_of_group([self.duplicate_groups[index] for index in self.order])
        return {self.order[place]: self.order[other] for place, other in others.items()}

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per image, the most suspicious first.

        Columns: ``rank``, ``path``, ``image_score``, ``removed_share``, ``highest_patch_score`` (on the scale of
        :attr:`scores`), ``highest_patch_x``, ``highest_patch_y`` (pixel at that patch's center), ``duplicate_group``
        (missing for an image without copies), ``look_alike_group`` (missing for an image without look-alikes),
        ``findings`` (other oddities, separated by semicolons) and, if the truth is known, ``label``.
        """
        values, rows, columns = peaks(self.scores)
        centers = [
            region.patch_center(row, column, self.grid_size)
            for region, row, column in zip(self.regions, rows.tolist(), columns.tolist(), strict=True)
        ]
        table = pd.DataFrame(
            {
                "path": self.paths,
                "image_score": self.image_scores.tolist(),
                "removed_share": (1 - self.kept.flatten(1).float().mean(dim=1)).tolist(),
                "highest_patch_score": values.tolist(),
                "highest_patch_x": [x for x, _ in centers],
                "highest_patch_y": [y for _, y in centers],
                "duplicate_group": pd.array(self.duplicate_groups, dtype="Int64"),
                "look_alike_group": pd.array(self.look_alike_groups, dtype="Int64"),
                "findings": ["; ".join(names) for names in self.oddities or [[]] * len(self.paths)],
            }
        )
        if self.labels is not None:
            table["label"] = ["anomalous" if label else "normal" for label in self.labels.tolist()]
        table = table.iloc[self.order]
        table.insert(0, "rank", range(1, len(table) + 1))
        return table
