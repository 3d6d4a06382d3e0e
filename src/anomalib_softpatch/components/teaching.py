# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Teaching: verdicts about images change a memory bank at once, without another fit.

A fit leaves a record (:class:`FitRecord`). Each verdict about an image is a :class:`Lesson`, made from the record and
the image alone. :func:`teach` makes a memory bank from a record and a set of lessons. So the order of the lessons does
not matter, and a lesson that is withdrawn leaves no trace.

- *normal*: what the image shows is normal, whatever other images show. Its rows get the support radius 0. Its patches
  that are far from the bank become rows, farthest first, see :data:`NORMAL_SHARE`. All such images together add at most
  as many rows as the bank has, plus a training image's share for each.
- *set aside*: the rows of the image leave the bank, and it supports no others.
- *defect*: the same as *set aside*, and patches become rows of a second bank, :class:`DefectBank`: all that stand out
  in the region that a person has marked. Without a region it is the one that stands out most, unless the image is found
  anyway. Rows of the memory bank that are nearer to one of these than to any other training image leave, too.
- *added*: a new image without a verdict. Patches that are far from the bank become rows with support radii: they make
  others look normal only as far as other images make them look normal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.components.search import MemoryBank, NearestNeighborSearch, nearest_neighbors
from anomalib_softpatch.components.search.bank import contains
from anomalib_softpatch.components.support_radii import Support
from anomalib_softpatch.components.tracing import without_autocast
from anomalib_softpatch.images.appearance import Appearance, appearances_from_plain, appearances_to_plain
from anomalib_softpatch.images.decisions import ADDED, DEFECT, NORMAL, SET_ASIDE
from anomalib_softpatch.options import FALSE_ALARMS

# Patches of an image whose features are kept: those with the highest scores, which teaching can change most
KEPT_PATCHES = 32
# A taught normal image has no patch that scores more than this share of the typical image's largest patch score.
# Other images that show the same are about as far from its rows as these are from it
NORMAL_SHARE = 0.5
# A patch that coincides with a defect scores this many times the threshold
LARGEST_RAISE = 4.0
# Without a region, the defect's patch is a guess: others must be this many times nearer to it than to the memory bank
SCALE_OF_GUESSES = 2.0
# Share of the requested false alarms that similarity to defects may add
SHARE_FOR_DEFECTS = 0.2
SMALLEST = 1e-12  # squared distance
NO_GROUP = -1


@dataclass(frozen=True, eq=False)
class PatchScoreMaps:
    """Patch scores of images against a memory bank without the rows from each image itself.

    Attributes:
        groups: Group of copies that each image belongs to, -1 for an image that was not in training, shape ``(n,)``.
        scores: Scores against the first and the last bank, before smoothing, shape ``(n, banks, height, width)``.
        places: Positions of the highest-scoring patches, shape ``(n, t)``.
        features: Features of these patches, shape ``(n, t, channels)``.
    """

    groups: torch.Tensor
    scores: torch.Tensor
    places: torch.Tensor
    features: torch.Tensor

    @property
    def peaks(self) -> torch.Tensor:
        """Largest patch score of each image against the first bank, shape ``(n,)``."""
        return self.scores[:, 0].amax(dim=(1, 2))

    def select(self, some: torch.Tensor) -> "PatchScoreMaps":
        """Return the scores of the images that a boolean tensor of shape ``(n,)`` selects."""
        return PatchScoreMaps(*(values[some] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class FitRecord:
    """What a fit leaves for teaching.

    Attributes:
        bank: The memory bank that was fitted.
        groups: Group of copies that the image of each row belongs to, shape ``(m,)``.
        places: Position of each row in the grid of patches, shape ``(m,)``.
        support: Images that support the rows; ``None`` where rows have no radii.
        factors: Factors of the distances to the k-th nearest images that give the radii, by k.
        maps: Patch scores of training images as if they had not been in training.
        keys: Keys of the training images; empty if any image came without a key.
        group_of_image: Group of copies of each training image, shape ``(images,)``.
        names: Hash of the file of each training image, ``""`` for one without a file; empty if not known.
        appearances: How training images look, in any order. With several processes: those that the first one read.
    """

    bank: MemoryBank
    groups: torch.Tensor
    places: torch.Tensor
    support: Support | None
    factors: Mapping[int, float]
    maps: PatchScoreMaps
    keys: tuple[str, ...]
    group_of_image: torch.Tensor
    names: tuple[str, ...] = ()
    appearances: tuple[Appearance, ...] = ()

    def group_of(self, name: str) -> int:
        """Return the group of copies that a training image belongs to, -1 for an image that was not in training."""
        return int(self.group_of_image[self.names.index(name)]) if name in self.names else NO_GROUP

    @property
    def rows_of_an_image(self) -> int:
        """Rows of the memory bank per training image, rounded up."""
        return -(-len(self.bank.features) // len(self.group_of_image))

    @property
    def weight_of_new_rows(self) -> float:
        """Median weight of the rows: noise scores do not apply to patches that a person has judged."""
        return float(self.bank.weights.median())

    def to(self, device: torch.device) -> "FitRecord":
        """Return the record with all tensors on a device."""
        return from_plain(_moved(to_plain(self, []), device))[0]

    @property
    def typical(self) -> float:
        """Largest patch score of the typical (median) training image, as if it had not been in training."""
        peaks = self.maps.peaks
        return float(peaks[peaks.isfinite()].median())


@dataclass(frozen=True, eq=False)
class Lesson:
    """A verdict about an image, and what it adds to a memory bank.

    Attributes:
        name: Hash of the image's file, by which the image is recognized.
        verdict: ``"normal"``, ``"defect"``, ``"set_aside"`` or ``"added"``.
        path: Where its file was.
        group: Its group of copies among the training images, -1 if it was not one.
        rows: Features of patches for the memory bank or for the bank of defects, shape ``(r, channels)``.
        places: Positions of these patches in the grid, shape ``(r,)``.
        map: Patch scores of this one image.
        region: Patches that the verdict is about, boolean of shape ``(height, width)``; ``None`` for all.
        appearance: How it looks as a whole; ``None`` if not known.
        of_folder: Whether it is from a folder of good images, which were not chosen by what they show.
    """

    name: str
    verdict: str
    path: str
    group: int
    rows: torch.Tensor
    places: torch.Tensor
    map: PatchScoreMaps
    region: torch.Tensor | None = None
    appearance: Appearance | None = None
    of_folder: bool = False


@dataclass(frozen=True, eq=False)
class Taught:
    """A memory bank that was taught.

    Attributes:
        bank: The memory bank.
        groups: Group of copies that each row belongs to, shape ``(m,)``; each new image is a group of its own.
        defects: Features of patches of defects, shape ``(d, channels)``.
        least_scales: Smallest scale that each of them may have in a :class:`DefectBank`, shape ``(d,)``.
    """

    bank: MemoryBank
    groups: torch.Tensor
    defects: torch.Tensor
    least_scales: torch.Tensor


@torch.no_grad()
def score_patches_by_banks(
    search: NearestNeighborSearch, queries: torch.Tensor, left_out: torch.Tensor | None = None
) -> torch.Tensor:
    """Score patches against the first and the last bank.

    Args:
        search: Search of the memory bank.
        queries: Shape ``(n, channels)``.
        left_out: Rows that do not count, boolean of shape ``(m,)``. Default: all count.

    Returns:
        Distances times weights, shape ``(banks, n)``: of one bank, or of two where they differ.
    """
    bank = search.bank
    if left_out is not None and bool(left_out.any()):
        search = search.without(left_out)
    scores = []
    for rows in dict.fromkeys((bank.bank_ranges[0], bank.bank_ranges[-1])):
        nearest = None
        for part in bank.parts:
            if contains(rows, part):
                nearest = search.nearest(queries, part, nearest)
        assert nearest is not None  # no bank is empty
        scores.append(nearest[0] * bank.weights[nearest[1]])
    return torch.stack(scores)


@torch.no_grad()
def map_scores(
    search: NearestNeighborSearch, features: torch.Tensor, row_groups: torch.Tensor, group: int
) -> PatchScoreMaps:
    """Score the patches of an image against a memory bank without its own rows.

    Args:
        search: Search of the memory bank.
        features: Features of the image's patches, shape ``(height, width, channels)``.
        row_groups: Group of each row of the bank, shape ``(m,)``.
        group: The image's group, -1 if it was not in training.
    """
    height, width, channels = features.shape
    queries = features.reshape(-1, channels).to(search.bank.features.dtype)
    scores = score_patches_by_banks(search, queries, row_groups == group)
    places = scores.amax(dim=0).topk(min(KEPT_PATCHES, len(queries))).indices
    return PatchScoreMaps(torch.tensor([group]), scores.view(1, -1, height, width), places[None], queries[places][None])


def join(maps: Sequence[PatchScoreMaps]) -> PatchScoreMaps:
    """Put the scores of all images together, on the device of the first ones."""
    device = maps[0].scores.device
    columns = zip(*(vars(each).values() for each in maps), strict=True)
    return PatchScoreMaps(*(torch.cat([values.to(device) for values in column]) for column in columns))


@torch.no_grad()
def make_lesson(
    record: FitRecord,
    search: NearestNeighborSearch,
    verdict: str,
    name: str,
    path: str,
    features: torch.Tensor,
    group: int = NO_GROUP,
    region: torch.Tensor | None = None,
    most: int | None = None,
) -> Lesson:
    """Make a lesson from a verdict about an image.

    Args:
        record: What the fit left.
        search: Search of the record's memory bank.
        verdict: ``"normal"``, ``"defect"``, ``"set_aside"`` or ``"added"``.
        name: Hash of the image's file, by which the image is recognized.
        path: Where its file is.
        features: Features of its patches, shape ``(height, width, channels)``.
        group: Its group of copies among the training images, -1 if it was not one.
        region: Patches that the verdict is about, boolean of shape ``(height, width)``. Default: all.
        most: Largest number of rows that a normal or an added image may add. Default: no limit.

    Raises:
        ValueError: If the region has no patch.
    """
    scored = map_scores(search, features, record.groups, group)
    queries = features.reshape(-1, features.shape[-1]).to(record.bank.features.dtype)
    scores = scored.scores[0, 0].flatten().clone()
    inside = torch.ones_like(scores, dtype=torch.bool) if region is None else region.flatten().to(scores.device)
    if not inside.any():
        msg = f"The region of {path!r} contains no patch of the model."
        raise ValueError(msg)
    chosen: list[int] = []
    if verdict == DEFECT:
        scores[~inside] = -torch.inf
        chosen = [int(scores.argmax())]
        if region is not None:
            chosen = (scores > record.typical).nonzero().squeeze(1).tolist() or chosen
        elif float(scores.max()) > false_alarm_threshold(record.maps.peaks, FALSE_ALARMS):
            chosen = []  # the image is found once its own rows have left the bank, and the patch would be a guess
    elif verdict in {NORMAL, ADDED}:
        weight = record.weight_of_new_rows
        is_own = record.groups == group
        if region is not None:
            is_own &= inside[record.places]
        if verdict == NORMAL and group != NO_GROUP and bool(is_own.any()):
            weights = record.bank.weights[is_own].clamp(max=weight)
            own = torch.cdist(queries, record.bank.features[is_own]) * weights
            scores = torch.minimum(scores, own.amin(dim=1))
        limit = NORMAL_SHARE * record.typical
        chosen = _farthest(queries, scores.masked_fill(~inside, 0), limit, weight, most or len(queries))
    places = torch.tensor(chosen, dtype=torch.long)
    region = None if region is None else region.cpu()
    return Lesson(name, verdict, path, group, queries[chosen], places, scored, region)


def _farthest(queries: torch.Tensor, scores: torch.Tensor, limit: float, weight: float, most: int) -> list[int]:
    """Choose the farthest patch again and again, until none is beyond a limit from the bank and the chosen ones."""
    chosen: list[int] = []
    while float(scores.max()) > limit and len(chosen) < most:
        chosen.append(int(scores.argmax()))
        distances = weight * torch.linalg.vector_norm(queries - queries[chosen[-1]], dim=1)
        scores = torch.minimum(scores, distances)
        scores[chosen[-1]] = 0
    return chosen


@torch.no_grad()
def teach(record: FitRecord, lessons: Sequence[Lesson], ignored: torch.Tensor | None = None) -> Taught:
    """Make a memory bank from a record and lessons.

    Args:
        record: What the fit left.
        lessons: Lessons in any order, each about a different image.
        ignored: Patches of the grid that are ignored, boolean of shape ``(height, width)``. Default: none.

    Raises:
        ValueError: If no row of a bank is left.
    """
    lessons = sorted(lessons, key=lambda lesson: lesson.name)
    bank, device = record.bank, record.bank.features.device
    removed = torch.tensor(sorted(gone_groups(lessons)), dtype=torch.long, device=device)
    defect_rows, least_scales = [bank.features[:0]], [torch.empty(0)]
    for each in lessons:
        if each.verdict == DEFECT:
            defect_rows.append(_not_ignored(each, each.rows, ignored).to(device))
            least_scale = SCALE_OF_GUESSES if each.region is None else 1.0
            least_scales.append(torch.full((len(defect_rows[-1]),), least_scale))
    defects = torch.cat(defect_rows)

    stays = ~torch.isin(record.groups, removed)
    is_normal = torch.zeros_like(stays)
    for each in lessons:
        if each.verdict == NORMAL and each.group != NO_GROUP:
            rows = record.groups == each.group
            is_normal |= rows if each.region is None else rows & each.region.to(device).flatten()[record.places]
    if ignored is not None:
        stays &= ~ignored.flatten().to(device)[record.places]
    radii = torch.zeros_like(bank.weights) if bank.radii is None else bank.radii
    if record.support is not None:
        if len(removed):
            radii = record.support.radii(record.factors, removed)
        if len(defects):
            nearest_image = record.support.radii({1: 1.0}, removed) / record.support.scale
            to_defect = nearest_neighbors(bank.features, defects)[0].squeeze(1)
            stays &= ~(to_defect < nearest_image) | is_normal
    radii = radii.masked_fill(is_normal, 0)
    weights = torch.where(is_normal, bank.weights.clamp(max=record.weight_of_new_rows), bank.weights)

    rows, row_radii, row_groups = _new_rows(record, lessons, stays, ignored)
    if any(not bool(stays[start:stop].any()) for start, stop in bank.bank_ranges) and not len(rows):
        msg = "Nothing is left of the memory bank: too many of its images are set aside. Train with the other images."
        raise ValueError(msg)
    # New rows belong to all banks, so they go where the first range stops: the second one starts there or before
    place = bank.bank_ranges[0][1]
    counts = [(int(stays[:start].sum()), int(stays[:stop].sum())) for start, stop in bank.bank_ranges]

    def with_new(values: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat((values[:place][stays[:place]], new.to(values), values[place:][stays[place:]]))

    taught = MemoryBank(
        with_new(bank.features, rows),
        with_new(weights, torch.full((len(rows),), record.weight_of_new_rows)),
        with_new(radii, row_radii),
        tuple((start, stop + len(rows)) for start, stop in counts),
    )
    return Taught(taught, with_new(record.groups, row_groups), defects, torch.cat(least_scales).to(device))


def gone_groups(lessons: Sequence[Lesson]) -> set[int]:
    """Return the groups of the training images that leave the memory bank."""
    return {each.group for each in lessons if each.verdict in {DEFECT, SET_ASIDE}} - {NO_GROUP}


def groups_of_lessons(record: FitRecord, lessons: Sequence[Lesson]) -> dict[str, int]:
    """Return the group of each lesson's image by its name: the group of a training image, or a new number."""
    new = sorted(each.name for each in lessons if each.group == NO_GROUP)
    first = int(record.group_of_image.max()) + 1
    known = {each.name: each.group for each in lessons if each.group != NO_GROUP}
    return known | {name: first + number for number, name in enumerate(new)}


def _not_ignored(lesson: Lesson, rows: torch.Tensor, ignored: torch.Tensor | None) -> torch.Tensor:
    """Return the rows of a lesson whose patches are not ignored."""
    return rows if ignored is None else rows[~ignored.cpu().flatten()[lesson.places].to(rows.device)]


def _new_rows(
    record: FitRecord, lessons: Sequence[Lesson], stays: torch.Tensor, ignored: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows that lessons add, their support radii, and the groups of their images."""
    device, numbers = record.bank.features.device, groups_of_lessons(record, lessons)
    rows, groups, unsure = [record.bank.features[:0]], [record.groups[:0]], [stays[:0]]
    scores = [record.bank.weights[:0]]
    for each in lessons:
        if each.verdict in {NORMAL, ADDED}:
            rows.append(_not_ignored(each, each.rows, ignored).to(device))
            groups.append(torch.full((len(rows[-1]),), numbers[each.name], device=device))
            unsure.append(torch.full((len(rows[-1]),), each.verdict == ADDED, device=device))
            of_rows = each.map.scores[0, 0].flatten()[each.places.to(each.map.scores.device)]
            scores.append(_not_ignored(each, of_rows, ignored).to(device))
    new, row_groups, are_unsure = torch.cat(rows), torch.cat(groups), torch.cat(unsure)
    # Normal images add at most as many rows as the record's memory bank has, plus a training image's share for each.
    # Where there are more, the selection of the coreset continues: the farthest one again and again.
    count = sum(each.verdict == NORMAL for each in lessons)
    most = len(record.bank.features) + count * record.rows_of_an_image
    sure = (~are_unsure).nonzero().squeeze(1)
    if len(sure) > most:
        chosen = are_unsure.clone()
        first = torch.cat(scores)[sure]
        chosen[sure[_farthest(new[sure], first, 0, record.weight_of_new_rows, most)]] = True
        new, row_groups, are_unsure = new[chosen], row_groups[chosen], are_unsure[chosen]
    radii = torch.zeros(len(new), device=device)
    if are_unsure.any() and record.support is not None:
        others = torch.cat((record.bank.features[stays], new))
        other_groups = torch.cat((record.groups[stays], row_groups))
        unsure_groups = row_groups[are_unsure]
        radii[are_unsure] = _radii_by_rows(new[are_unsure], unsure_groups, others, other_groups, record.factors)
    return new, radii, row_groups


def _radii_by_rows(
    rows: torch.Tensor,
    groups: torch.Tensor,
    others: torch.Tensor,
    other_groups: torch.Tensor,
    factors: Mapping[int, float],
) -> torch.Tensor:
    """Return support radii from the rows of a memory bank: never smaller than from all patches, which are more."""
    numbers, places = other_groups.unique(return_inverse=True)
    radii = torch.zeros(len(rows), device=rows.device)
    for start in range(0, len(rows), 256):
        part = slice(start, start + 256)
        distances = torch.cdist(rows[part], others)
        of_groups = distances.new_full((len(distances), len(numbers)), torch.inf)
        of_groups.scatter_reduce_(1, places.expand(len(distances), -1), distances, reduce="amin")
        of_groups.masked_fill_(numbers == groups[part, None], torch.inf)
        nearest, order = of_groups.sort(dim=1)
        radii[part] = Support(numbers[order].masked_fill(nearest.isinf(), -1), nearest).radii(factors)
    return radii


@torch.no_grad()
def score_again(maps: PatchScoreMaps, taught: Taught) -> torch.Tensor:
    """Score images against a memory bank that was taught, by the patches whose features were kept.

    Other patches keep their scores: these are lower, and teaching lowers some and raises few.

    Returns:
        Scores before smoothing and without defects, shape ``(n, banks, height, width)``.
    """
    scores = maps.scores.clone()
    search = NearestNeighborSearch(taught.bank)
    flat = scores.flatten(2)
    for number, group in enumerate(maps.groups.tolist()):
        own = taught.groups == group
        flat[number][:, maps.places[number]] = score_patches_by_banks(search, maps.features[number], own)
    return scores


@dataclass(frozen=True, eq=False)
class DefectBank:
    """Patches of defects, and how much nearer to one of them than to normal patches another defect must be.

    Attributes:
        features: Shape ``(d, channels)``.
        scales: Factors of the distances to them, shape ``(d,)``.
        threshold: Threshold of image scores, a scalar.
    """

    features: torch.Tensor
    scales: torch.Tensor
    threshold: torch.Tensor

    def score(self, normal: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Score patches that are nearer to a defect than to the memory bank.

        The score is ``threshold * n / min_j(c_j d_j)`` with the score n against the memory bank and the distances d_j
        to the defects; at most :data:`LARGEST_RAISE` times the threshold.

        Args:
            normal: Scores of images against the memory bank, shape ``(images, patches)``.
            queries: The patches, shape ``(images * patches, channels)``.

        Returns:
            Shape ``(images, patches)``; 0 where the score is not above the threshold. Only patches that almost coincide
            with a defect, or the :data:`KEPT_PATCHES` least normal ones of an image, as in calibration, can be above.
        """
        squares = squared_distances(queries, self.features) * self.scales.square()
        ratio = normal / squares.amin(dim=1).clamp(min=SMALLEST).sqrt().view_as(normal)
        least_normal = normal.topk(min(KEPT_PATCHES, normal.shape[1]), dim=1).values[:, -1:]
        nearer = (ratio > 1) & ((normal >= least_normal) | (ratio >= LARGEST_RAISE))
        return torch.where(nearer, self.threshold * ratio.clamp(max=LARGEST_RAISE), torch.zeros_like(normal))


def squared_distances(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return squared distances, shape ``(n, m)``, in operations that exported graphs use for the memory bank, too."""
    # Expanded squares lose digits where rows coincide, which does not matter: see LARGEST_RAISE
    with without_autocast(queries.device):
        products = F.linear(-2 * queries, rows, rows.square().sum(dim=1))
    return (products + queries.square().sum(dim=1, keepdim=True)).clamp(min=0)


def calibrate_defects(taught: Taught, maps: PatchScoreMaps, scores: torch.Tensor, false_alarms: float) -> torch.Tensor:
    """Return how much nearer to a defect than to the memory bank a patch must be to count as a defect.

    A patch of a good image may be nearer to a defect than to the memory bank by chance. That is more likely with many
    patches of defects, above all with those that look like normal ones. So each of them is compared with the typical
    training image, and all of them together are allowed a share of false alarms, by the rule of
    :func:`~anomalib_softpatch.components.out_of_bag.false_alarm_threshold`.

    Args:
        taught: Memory bank with patches of defects.
        maps: Training images that are not known to be defects.
        scores: Scores of their kept patches against the memory bank, shape ``(n, t)``.
        false_alarms: Share of good images that may be called anomalous because they resemble a defect.

    Returns:
        Scales of a :class:`DefectBank`, shape ``(d,)``.
    """
    ratios = scores.new_empty(len(scores), len(taught.defects))
    for number, (features, of_image) in enumerate(zip(maps.features, scores, strict=True)):
        distances = squared_distances(features, taught.defects).clamp(min=SMALLEST).sqrt()
        ratios[number] = (of_image[:, None] / distances).amax(dim=0)
    typical = ratios.median(dim=0).values.clamp(min=SMALLEST)
    limit = false_alarm_threshold((ratios / typical).amax(dim=1), false_alarms)
    return torch.maximum(typical * limit, taught.least_scales)


def to_plain(record: FitRecord, lessons: Sequence[Lesson]) -> dict[str, Any]:
    """Return a record and lessons as plain data and tensors, which load without unpickling code."""
    bank, support = record.bank, record.support
    ranges = [list(rows) for rows in bank.bank_ranges]
    return vars(record) | {
        "bank": {"features": bank.features, "weights": bank.weights, "radii": bank.radii, "ranges": ranges},
        "support": None if support is None else vars(support),
        "factors": dict(record.factors),
        "maps": vars(record.maps),
        "keys": list(record.keys),
        "names": list(record.names),
        "appearances": appearances_to_plain(record.appearances),
        "lessons": [_lesson_to_plain(lesson) for lesson in lessons],
    }


def _lesson_to_plain(lesson: Lesson) -> dict[str, Any]:
    known = [] if lesson.appearance is None else [lesson.appearance]
    return vars(lesson) | {"map": vars(lesson.map), "appearance": appearances_to_plain(known)}


def _moved(data: Any, device: torch.device) -> Any:
    if isinstance(data, torch.Tensor):
        return data.to(device)
    if isinstance(data, dict):
        return {name: _moved(value, device) for name, value in data.items()}
    return data


def from_plain(data: Mapping[str, Any]) -> tuple[FitRecord, list[Lesson]]:
    """Return the record and the lessons that :func:`to_plain` was given."""
    bank, support = data["bank"], data["support"]
    ranges = tuple((start, stop) for start, stop in bank["ranges"])
    record = FitRecord(
        bank=MemoryBank(bank["features"], bank["weights"], bank["radii"], ranges),
        groups=data["groups"],
        places=data["places"],
        support=None if support is None else Support(**support),
        factors=data["factors"],
        maps=PatchScoreMaps(**data["maps"]),
        keys=tuple(data["keys"]),
        group_of_image=data["group_of_image"],
        names=tuple(data["names"]),
        appearances=appearances_from_plain(data.get("appearances", ())),
    )
    return record, [_lesson_from_plain(each) for each in data["lessons"]]


def _lesson_from_plain(data: Mapping[str, Any]) -> Lesson:
    known = appearances_from_plain(data.get("appearance", ()))
    changed = {"map": PatchScoreMaps(**data["map"]), "appearance": known[0] if known else None}
    return Lesson(**(dict(data) | changed))
