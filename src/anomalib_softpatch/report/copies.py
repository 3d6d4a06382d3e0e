# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images of another folder that are copies of the images of a report: a test with them promises too much."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from anomalib_softpatch.components.duplicates import FEWEST_IMAGES, near_pairs
from anomalib_softpatch.text import counted, shown


@dataclass(frozen=True)
class Copy:
    """An image of another folder, the image of the report that it is a copy of, and whether they are equal."""

    path: str
    copy_of: str
    exact: bool

    @property
    def reason(self) -> str:
        """What it is, for a list."""
        return f"{'copy' if self.exact else 'near copy'} of {self.copy_of}"


@dataclass(frozen=True)
class OtherFolder:
    """What was found in another folder.

    Attributes:
        folder: Its path.
        images: Number of its images that were compared.
        skipped: Number of its files that were not: other files, and images that cannot be read.
        near: Whether near copies were looked for, which takes 20 images.
        copies: Its images that are copies, by path.
    """

    folder: str
    images: int
    skipped: int
    near: bool
    copies: Sequence[Copy]

    @property
    def line(self) -> str:
        """The result in a sentence."""
        skipped = f" ({counted(self.skipped, 'file')} not looked at)" if self.skipped else ""
        few = "" if self.near else f" Near copies were not looked for, which takes {FEWEST_IMAGES} images."
        exact = sum(copy.exact for copy in self.copies)
        near = len(self.copies) - exact
        text = f"{counted(self.images, 'image')} in {shown(self.folder)}{skipped}"
        if not self.copies:
            return f"None of {text} is a copy of one in this set.{few}"
        advice = "Take them out of one of the two, or a test promises too much."
        return f"{exact + near} of {text} are copies of images in this set ({exact} exact, {near} near). {advice}{few}"


def find_copies(
    hashes: Sequence[Hashable],
    features: torch.Tensor,
    other_hashes: Sequence[Hashable],
    other_features: torch.Tensor,
    progress: bool = False,
) -> list[tuple[int, int, bool]]:
    """Find images of a set that are copies of images of another set, as those of a duplicate group are.

    Args:
        hashes: Hash of the content of each image of the first set.
        features: Features of its patches, shape ``(images, height, width, channels)``.
        other_hashes: The same of the other set.
        other_features: Likewise.
        progress: Show a progress bar.

    Returns:
        For each image of the other set that is a copy: its index, that of the image of the first set that it is a
        copy of (the first of equal ones, the nearest of near ones), and whether they are equal.
    """
    own: dict[Hashable, int] = {}  # first image of each content
    for index, content in enumerate(hashes):
        own.setdefault(content, index)
    new: dict[Hashable, int] = {}  # likewise, of contents that the first set does not have
    for index, content in enumerate(other_hashes):
        if content not in own:
            new.setdefault(content, index)
    contents = [*own, *new]
    different = torch.cat([features[list(own.values())], other_features[list(new.values())]])
    nearest: dict[Hashable, tuple[float, int]] = {}  # distance to the nearest near copy, and its index
    for first, second in near_pairs(different, progress).tolist():
        if first < len(own) <= second:
            distance = float((different[first] - different[second]).square().mean())
            found = (distance, own[contents[first]])
            nearest[contents[second]] = min(found, nearest.get(contents[second], found))
    return [
        (index, own[content], True) if content in own else (index, nearest[content][1], False)
        for index, content in enumerate(other_hashes)
        if content in own or content in nearest
    ]
