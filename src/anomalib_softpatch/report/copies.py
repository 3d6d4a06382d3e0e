# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Images of another folder that are copies of the images of a report: a test with them promises too much."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from anomalib_softpatch.components.duplicates import FEWEST_IMAGES, near_pairs
from anomalib_softpatch.text import counted, shown


@dataclass(frozen=True)
class Copy:
    """An image of another folder that is a copy.

    Attributes:
        path: The image.
        copy_of: The image of the report.
        exact: Whether they have the same pixels.
    """

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
        folder: The folder.
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

    @property
    def record(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)


def find_copies(
    hashes: Sequence[str],
    features: torch.Tensor,
    other_hashes: Sequence[str],
    other_features: torch.Tensor,
    progress: bool = False,
) -> list[tuple[int, int, bool]]:
    """Find images of a set that are copies of images of another set.

    Copies are what :func:`~anomalib_softpatch.components.duplicates.duplicate_groups` takes for copies, among the
    images of both sets.

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
    first: dict[str, int] = {}  # image of both sets by its content
    for index, content in enumerate([*hashes, *other_hashes]):
        first.setdefault(content, index)
    chosen = torch.tensor(list(first.values()), device=features.device)
    own = chosen < len(hashes)
    different = torch.cat([features[chosen[own]], other_features[chosen[~own] - len(hashes)]])
    pairs = near_pairs(different, progress).to(features.device)  # those of the first set come first
    pairs = pairs[(pairs[:, 0] < own.sum()) & (pairs[:, 1] >= own.sum())]
    twins: dict[int, tuple[float, int]] = {}  # distance to, and number of, the nearest
    for one, other in pairs.tolist():
        distance = float((different[one] - different[other]).square().mean())
        twins[other] = min((distance, one), twins.get(other, (distance, one)))
    numbers = {content: number for number, content in enumerate(first)}
    contents = list(first.values())
    copies = []
    for index, content in enumerate(other_hashes):
        if first[content] < len(hashes):
            copies.append((index, first[content], True))
        elif numbers[content] in twins:
            copies.append((index, contents[twins[numbers[content]][1]], False))
    return copies
