# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images in another folder that are copies of a report's images: a test with them overrates a model."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from anomalib_softpatch.components.duplicates import FEWEST_IMAGES, near_pairs
from anomalib_softpatch.text import counted, shown


@dataclass(frozen=True)
class Copy:
    """An image in another folder, the report's image that it is a copy of, and whether the two are equal."""

    path: str
    copy_of: str
    exact: bool

    @property
    def reason(self) -> str:
        """Description for a list of files."""
        return f"{'copy' if self.exact else 'near copy'} of {self.copy_of}"


@dataclass(frozen=True)
class OtherFolder:
    """Result of the search for copies in another folder."""

    folder: str
    images: int  # number of images that were compared
    skipped: int  # number of other files, and of images that cannot be read
    near: bool  # whether there were enough images (20) to look for near copies
    copies: Sequence[Copy]  # sorted by path

    @property
    def line(self) -> str:
        """Summary of the result."""
        skipped = f" ({counted(self.skipped, 'file')} not looked at)" if self.skipped else ""
        few = "" if self.near else f" The search for near copies needs at least {FEWEST_IMAGES} images."
        exact = sum(copy.exact for copy in self.copies)
        near = len(self.copies) - exact
        text = f"{counted(self.images, 'image')} in {shown(self.folder)}{skipped}"
        if not self.copies:
            return f"None of {text} is a copy of one in this set.{few}"
        advice = "Remove them from one of the two sets; otherwise a test overrates the model."
        return f"{exact + near} of {text} are copies of images in this set ({exact} exact, {near} near). {advice}{few}"


def find_copies(
    hashes: Sequence[Hashable],
    features: torch.Tensor,
    other_hashes: Sequence[Hashable],
    other_features: torch.Tensor,
    progress: bool = False,
) -> list[tuple[int, int, bool]]:
    """Find the images of another set that are copies of images of this set, as in a duplicate group.

    Args:
        hashes: Hash of the content of each image of this set.
        features: Features of the patches of this set, shape ``(images, height, width, channels)``.
        other_hashes: Hashes of the other set.
        other_features: Features of the other set, shape ``(other images, height, width, channels)``.
        progress: Show a progress bar.

    Returns:
        For each copy in the other set: its index, the index of the image that it is a copy of (the first equal image,
        or the nearest one), and whether the two are equal.
    """
    own: dict[Hashable, int] = {}  # the first image with each content
    for index, content in enumerate(hashes):
        own.setdefault(content, index)
    new: dict[Hashable, int] = {}  # the same for contents that only the other set has
    for index, content in enumerate(other_hashes):
        if content not in own:
            new.setdefault(content, index)
    contents = [*own, *new]
    different = torch.cat([features[list(own.values())], other_features[list(new.values())]])
    nearest: dict[Hashable, tuple[float, int]] = {}  # distance and index of the nearest near copy
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
