# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Why images of a report look odd: the patches they are closest to, and their look-alikes."""

from dataclasses import replace
from typing import Literal

import torch

from anomalib_softpatch.components.duplicates import representatives
from anomalib_softpatch.components.look_alikes import look_alike_groups, nearest_in_images
from anomalib_softpatch.report.findings import Findings, NearestPatch
from anomalib_softpatch.report.image_scores import peaks

MOST_EXPLAINED = 50  # number of the most suspicious images that are explained
# Look-alikes are searched among the most suspicious images: this share of all images, or all that stand out if those
# are more, but at most half of all images and at most this many
COMPARED_SHARE, MOST_COMPARED = 0.2, 200
NEAREST = 3  # nearest images that are shown for a patch


def with_look_alikes(findings: Findings, features: torch.Tensor, neighborhood: int | Literal["image"]) -> Findings:
    """Add the nearest patches and the look-alikes of the most suspicious images to findings.

    Args:
        findings: Findings of a set, with duplicate groups. Copies of an image count as that image.
        features: Features of one image of each group, shape ``(groups, height, width, channels)``.
        neighborhood: Which patches of other images each patch was compared with, see :func:`rank_images`.
    """
    assert findings.groups is not None
    first, group_of_image = representatives(findings.groups), findings.groups.tolist()
    order = list(dict.fromkeys(group_of_image[index] for index in findings.order))
    above = int((findings.image_scores[first] > findings.noise_level.score).sum())
    odd = order[: min(max(above, round(COMPARED_SHARE * len(order))), len(order) // 2, MOST_COMPARED)]
    queries = list(dict.fromkeys([*odd, *order[:MOST_EXPLAINED]]))
    width = findings.scores.shape[2]
    _, rows, columns = peaks(findings.scores[first])
    places = (rows * width + columns).tolist()
    found = nearest_in_images(features, queries, [places[group] for group in queries], neighborhood)
    nearest_of_group = {
        group: [
            NearestPatch(int(first[other]), place // width, place % width, distance)
            for other, place, distance in found.nearest(number, NEAREST)
        ]
        for number, group in enumerate(queries)
    }
    shown = findings.order[:MOST_EXPLAINED]
    look_alikes = torch.full((len(first),), -1)
    for number, members in enumerate(look_alike_groups(found.anywhere[: len(odd)], odd)):
        look_alikes[[odd[place] for place in members]] = number
    return replace(
        findings,
        nearest={index: nearest_of_group[group_of_image[index]] for index in shown},
        look_alikes=look_alikes[findings.groups],
    )
