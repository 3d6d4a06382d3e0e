# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Support radii: how many other images must show something before a patch of the memory bank counts as normal.

The support radius r(m) of a patch m is its distance to the k-th nearest other image. A test patch x scores the smallest
mutual reachability distance max(d(x, m), r(m)) over the memory bank: a patch makes others look normal only as far as k
other images make the patch itself look normal. A defect among the training images then scores as it would if it had
not been there. Nothing is removed, so nothing can be removed wrongly.

Copies of an image count as one image. Otherwise a defect whose image was copied would support itself. By default k is
1, which costs least where normal patches are rare. But if the nearest image is much nearer than the second, for example
because it shows the same object in different light, the second counts: r(m) = max(d_1(m), 0.9 d_2(m)).

References: Ramaswamy, Rastogi and Shim, Efficient Algorithms for Mining Outliers from Large Data Sets, SIGMOD 2000 (the
distance to the k-th nearest neighbor as an outlier score); Campello, Moulavi and Sander, Density-Based Clustering Based
on Hierarchical Density Estimates, PAKDD 2013, definition 3 (the mutual reachability distance).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

from anomalib_softpatch.components.feature_store import FeatureStore
from anomalib_softpatch.components.progress import progress_bar
from anomalib_softpatch.components.references import References

# Factors of the distances to the nearest and the second nearest image; by default, the larger product is the radius
DEFAULT_SUPPORT = {1: 1.0, 2: 0.9}
# Elements of the largest temporary tensors, and images that are compared together
BLOCK = 2**24
IMAGES_AT_A_TIME = 256
# Images that the calibration compares, and the share of their patches: those with the highest noise scores, since they
# decide the image scores. The mean of several is steadier than the largest.
CALIBRATION_IMAGES = 64
CALIBRATION_SHARE = 0.01
# Range of the scales that are tried: a scale outside of it would be the sign of another problem
SMALLEST_SCALE, LARGEST_SCALE = 0.25, 4.0
SCALES = 33


def support_of(min_images: float | Literal["auto"], images: int) -> dict[int, float]:
    """Return which of the nearest images support a patch.

    Args:
        min_images: Number of images that must show something, including the patch's own; below 1, the share of the
            images, which is at least two images; or ``"auto"``.
        images: Number of all images, without copies.

    Returns:
        Factors of the distances to the k-th nearest images, by k; empty if one image is enough.
    """
    if min_images == "auto":
        return dict(DEFAULT_SUPPORT)
    # Rounded first: 0.07 * 100 is more than 7 in floating-point numbers
    count = max(2, math.ceil(round(min_images * images, 6))) if min_images < 1 else int(min_images)
    return {count - 1: 1.0} if count > 1 else {}


@dataclass(frozen=True, eq=False)
class Support:
    """Which other images are nearest to some patches, and how far away.

    Attributes:
        images: Numbers of these images' groups of copies, nearest first, -1 where there are no more, shape ``(m, n)``.
        distances: Distances to them, shape ``(m, n)``.
        scale: Factor from these distances to radii, see :func:`calibrate`.
    """

    images: torch.Tensor
    distances: torch.Tensor
    scale: float = 1.0

    def radii(self, factors: Mapping[int, float], gone: torch.Tensor | None = None) -> torch.Tensor:
        """Return the support radii of the patches.

        Args:
            factors: Factors of the distances to the k-th nearest other images, by k: the largest product is the radius.
                Where there are fewer images, the last known one takes the place of the k-th.
            gone: Numbers of the groups that do not support any patch. Default: none.

        Returns:
            Shape ``(m,)``; zeros where there is no other image.
        """
        if not self.images.shape[1]:
            return torch.zeros(len(self.images), device=self.distances.device)
        known = self.images >= 0
        if gone is not None and len(gone):
            known &= ~torch.isin(self.images, gone)
        # A stable sort keeps the order of those that count
        order = (~known).to(torch.uint8).sort(dim=1, stable=True).indices
        distances, counts = self.distances.gather(1, order), known.sum(dim=1)
        radii = torch.zeros(len(distances), device=distances.device)
        for k, factor in factors.items():
            place = counts.clamp(max=k) - 1
            distance = distances.gather(1, place.clamp(min=0)[:, None]).squeeze(1)
            radii = torch.maximum(radii, factor * distance.masked_fill(place < 0, 0))
        return self.scale * radii


@torch.no_grad()
def find_support(
    store: FeatureStore,
    indices: torch.Tensor,
    groups: torch.Tensor,
    count: int,
    neighborhood: int | Literal["image"] = 1,
    progress: bool = False,
) -> Support:
    """Find the other images that are nearest to some patches, and the distances to them.

    The distance to an image is the distance to its nearest patch at about the same position.

    Args:
        store: Features of all patches.
        indices: Numbers of the patches, ``image * height * width + row * width + column``, shape ``(m,)``.
        groups: Number of each image's group of copies, shape ``(images,)``; a group counts as one image. If all
            images are copies of one, they count as different images.
        count: Number of images to find for each patch; all, if there are fewer.
        neighborhood: How many rows and columns away a patch of another image may be; ``"image"``: anywhere.
        progress: Show a progress bar.
    """
    images, height, width, channels = store.shape
    patches, device = height * width, indices.device
    groups = groups_that_count(groups.to(device))
    others = int(groups.max())
    count = min(count, others)
    found = torch.full((len(indices), count), -1, dtype=torch.long, device=device)
    distances = torch.zeros(len(indices), count, device=device)
    if count < 1:
        return Support(found, distances)
    positions, windows = (each.to(device) for each in References(neighborhood).positions((height, width)))
    window_of = torch.empty(patches, dtype=torch.long, device=device)
    window_of[positions.flatten()] = torch.arange(len(positions), device=device).repeat_interleave(positions.shape[1])

    order = window_of[indices % patches].argsort(stable=True)
    with progress_bar(len(indices) * images, "Finding support", "comparison", progress) as bar:
        for part in order.split(max(1, BLOCK // max(IMAGES_AT_A_TIME, channels))):
            rows = indices[part]
            found[part], nearest = _nearest_groups(store, rows, groups, count, window_of, windows, bar)
            queries = store.rows(rows)
            for k in range(count):
                # Expanded squares only find the patch. Its distance is computed from differences: exact, 0 for copies
                distances[part, k] = torch.linalg.vector_norm(queries - store.rows(nearest[:, k]), dim=1)
    return Support(found, distances)


def support_radii(
    store: FeatureStore,
    indices: torch.Tensor,
    groups: torch.Tensor,
    support: Mapping[int, float],
    neighborhood: int | Literal["image"] = 1,
) -> torch.Tensor:
    """Return the support radii of patches: their distances to the other images that must show the same.

    Args:
        store: Features of all patches.
        indices: Numbers of the patches, shape ``(m,)``.
        groups: Number of each image's group of copies, shape ``(images,)``.
        support: Factors of the distances to the k-th nearest other images, by k, see :meth:`Support.radii`.
        neighborhood: How many rows and columns away a patch of another image may be; ``"image"``: anywhere.

    Returns:
        Shape ``(m,)``, in the units of the features; zeros where there is no other image.
    """
    return find_support(store, indices, groups, max(support, default=0), neighborhood).radii(support)


def groups_that_count(groups: torch.Tensor) -> torch.Tensor:
    """Number groups of copies from 0 on without gaps; if all images are copies of one, each is a group of its own."""
    if bool((groups == groups[0]).all()):
        return torch.arange(len(groups), device=groups.device)
    return groups.unique(return_inverse=True)[1]


def _nearest_groups(
    store: FeatureStore,
    rows: torch.Tensor,
    groups: torch.Tensor,
    count: int,
    window_of: torch.Tensor,
    windows: torch.Tensor,
    bar: "tqdm[None]",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest other groups of images and their nearest patches, both of shape ``(n, count)``."""
    _, height, width, channels = store.shape
    patches, device = height * width, rows.device
    queries = store.rows(rows)
    center = queries.mean(dim=0)  # expanded squares lose digits far from the origin
    queries -= center
    lengths = queries.square().sum(dim=1, keepdim=True)
    names, counts = window_of[rows % patches].unique_consecutive(return_counts=True)
    stops = counts.cumsum(dim=0).tolist()
    own = groups[rows // patches][:, None]
    best = queries.new_full((len(rows), count), torch.inf)
    best_groups = torch.full((len(rows), count), -1, dtype=torch.long, device=device)
    best_patches = torch.zeros_like(best_groups)
    at_a_time = max(1, min(IMAGES_AT_A_TIME, BLOCK // (patches * channels)))
    for numbers, batch in store.numbered_batches(device, at_a_time):
        flat = batch.reshape(len(batch), patches, channels) - center
        norms = flat.square().sum(dim=2)
        squares = queries.new_empty(len(rows), len(batch))
        nearest = torch.empty(len(rows), len(batch), dtype=torch.long, device=device)
        for start, stop, window in zip([0, *stops[:-1]], stops, windows[names], strict=True):
            others, other_norms = flat[:, window].flatten(0, 1), norms[:, window].flatten()
            size = max(1, BLOCK // len(others))
            for first in range(start, stop, size):
                some = slice(first, min(first + size, stop))
                products = torch.addmm(other_norms, queries[some], others.T, alpha=-2) + lengths[some]
                values, nearest_places = products.view(len(products), len(batch), -1).min(dim=2)
                squares[some] = values.clamp_min_(0)
                nearest[some] = numbers * patches + window[nearest_places]
        of_batch = groups[numbers].expand(len(rows), -1)
        squares.masked_fill_(of_batch == own, torch.inf)
        squares = torch.cat((best, squares), dim=1)
        found = torch.cat((best_groups, of_batch), dim=1)
        nearest = torch.cat((best_patches, nearest), dim=1)
        for k in range(count):
            best[:, k], place = squares.min(dim=1)
            best_groups[:, k] = found.gather(1, place[:, None]).squeeze(1)
            best_patches[:, k] = nearest.gather(1, place[:, None]).squeeze(1)
            squares.masked_fill_(found == best_groups[:, k, None], torch.inf)
        bar.update(len(rows) * len(batch))
    return best_groups, best_patches


@torch.no_grad()
def calibrate(
    store: FeatureStore,
    bank: torch.Tensor,
    indices: torch.Tensor,
    groups: torch.Tensor,
    radii: torch.Tensor,
    scores: torch.Tensor,
) -> float:
    """Return the scale of the radii at which a training image looks no better than a new one.

    Radii are distances to the patches of all images. Scores are distances to the few patches of the memory bank, which
    are longer. Besides, only a training image finds its own patches in the memory bank. One scale corrects for both:
    with it, the typical (median) training image scores as high with its own patches in the bank (in-bag, with radii) as
    without them and those of its copies (out-of-bag, without radii). It is normal as long as most images are.

    Args:
        store: Features of all patches.
        bank: Patches of the memory bank, shape ``(m, channels)``.
        indices: Numbers of these patches, shape ``(m,)``.
        groups: Number of each image's group of copies, shape ``(images,)``.
        radii: Support radii of the patches, shape ``(m,)``.
        scores: Noise scores, shape ``(images, height, width)``: the patches with the highest ones are compared.

    Returns:
        The scale; 1 where it does not matter, as with a single image.
    """
    images, height, width, _ = store.shape
    patches = height * width
    groups = groups_that_count(groups.to(indices.device))
    chosen = torch.linspace(0, images - 1, min(images, CALIBRATION_IMAGES)).round().long()
    count = max(1, math.ceil(CALIBRATION_SHARE * patches))
    places = scores.flatten(1)[chosen.to(scores.device)].topk(count, dim=1).indices.to(indices.device)
    chosen = chosen.to(indices.device)
    queries = (chosen[:, None] * patches + places).flatten()
    scales = torch.linspace(math.log(SMALLEST_SCALE), math.log(LARGEST_SCALE), SCALES, dtype=torch.double).exp()
    center = bank.mean(dim=0)
    rows = bank - center
    norms = rows.square().sum(dim=1)
    smallest = radii.square()
    in_bag, out_of_bag = [], []
    for some in queries.split(max(1, BLOCK // (4 * len(bank)))):
        features = store.rows(some) - center
        squares = torch.addmm(norms, features, rows.T, alpha=-2) + features.square().sum(dim=1, keepdim=True)
        squares.clamp_min_(0)
        scaled = [torch.maximum(squares, scale**2 * smallest).amin(dim=1).sqrt() for scale in scales.tolist()]
        in_bag.append(torch.stack(scaled, dim=1))
        own = groups[some // patches][:, None] == groups[indices // patches]
        out_of_bag.append(squares.masked_fill_(own, torch.inf).amin(dim=1).sqrt())
    typical = torch.cat(out_of_bag).view(-1, count).mean(dim=1)
    with_own = torch.cat(in_bag).view(len(typical), count, -1).mean(dim=1)
    known = typical.isfinite()
    if not known.any():
        return 1.0
    target = float(typical[known].quantile(0.5))
    curve = with_own[known].quantile(0.5, dim=0).double().cpu()
    above = int((curve < target).sum())
    if above in {0, SCALES}:  # nothing to scale, for example if all images are equal
        return 1.0
    low, high = curve[above - 1], curve[above]
    share = float((target - low) / (high - low))
    return float(scales[above - 1] ** (1 - share) * scales[above] ** share)
