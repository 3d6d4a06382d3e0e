# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Suspicious regions: neighboring patches of an image that are rare enough for an image to stand out."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects, label

from anomalib_softpatch.report.findings import Findings


@dataclass(frozen=True)
class SuspiciousRegion:
    """Bounding box of neighboring suspicious patches in pixels, and the rarity of the rarest of them."""

    left: float
    top: float
    width: float
    height: float
    rarity: float


def suspicious_regions(findings: Findings, index: int, size: tuple[int, int]) -> list[SuspiciousRegion]:
    """Return the suspicious regions of an image, the rarest first, clipped to its width and height.

    A region is a connected component, with diagonal neighbors, of patches whose rarity is above the score at which an
    image stands out. An image that stands out has at least one region; other images may have some, too.
    """
    rarity = findings.rarity[index].cpu().numpy()
    covered = findings.regions[index]
    step_x, step_y = covered.patch_size(findings.grid_size)
    components, _ = label(rarity > findings.noise_level.score, structure=np.ones((3, 3)))
    found = []
    for number, (vertical, horizontal) in enumerate(find_objects(components), start=1):
        left = max(0.0, covered.left + horizontal.start * step_x)
        top = max(0.0, covered.top + vertical.start * step_y)
        right = min(float(size[0]), covered.left + horizontal.stop * step_x)
        bottom = min(float(size[1]), covered.top + vertical.stop * step_y)
        if right > left and bottom > top:
            found.append(
                SuspiciousRegion(left, top, right - left, bottom - top, float(rarity[components == number].max()))
            )
    return sorted(found, key=lambda region: -region.rarity)
