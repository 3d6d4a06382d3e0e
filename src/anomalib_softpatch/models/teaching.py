# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Teaching of a model: memory bank, bank of defects, ignored patches and thresholds follow from its lessons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from anomalib_softpatch.components.out_of_bag import decided_threshold
from anomalib_softpatch.components.teaching import (
    NO_GROUP,
    SHARE_FOR_DEFECTS,
    DefectBank,
    FitRecord,
    Lesson,
    PatchScoreMaps,
    Taught,
    calibrate_defects,
    gone_groups,
    groups_of_lessons,
    join,
    score_again,
    teach,
)
from anomalib_softpatch.images.appearance import UsualAppearance
from anomalib_softpatch.images.decisions import ADDED, NORMAL
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor, normalize
from anomalib_softpatch.predictions.training import TrainingFacts
from anomalib_softpatch.text import counted, shown

MOST_NAMED = 5

if TYPE_CHECKING:
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin
    from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel


@dataclass(frozen=True)
class Change:
    """What teaching changed.

    Attributes:
        rows: Number of rows of the memory bank before and after.
        defects: Number of patches of defects before and after.
        thresholds: Threshold of the image score before and after.
        flipped: Number of training images with another verdict than before, scored as if they were new.
        scored: Number of training images that were scored in this way.
        rule: How the threshold was set, as a sentence.
    """

    rows: tuple[int, int]
    defects: tuple[int, int]
    thresholds: tuple[float, float]
    flipped: int
    scored: int
    rule: str


@torch.no_grad()
def teach_model(module: "DenoisingMixin", lessons: Sequence[Lesson], ignored: torch.Tensor | None = None) -> Change:
    """Put a model in the state that it would have if it had been taught these lessons, and no others, since its fit.

    The thresholds follow from the scores of the training images as if they were new. Images that people called defects
    are left out, and new ones that they called normal are added. If people have decided about all images with the
    highest scores, these decisions set the thresholds, see
    :func:`~anomalib_softpatch.components.out_of_bag.decided_threshold`. Thresholds from validation labels stay.

    Args:
        module: Model with a record of its fit.
        lessons: Lessons in any order, each about a different image.
        ignored: Patches of the grid to ignore, boolean of shape ``(height, width)``. Default: none.

    Raises:
        ValueError: If the model has no record or no threshold, or nothing is left of its memory bank.
    """
    model, processor = module.model, module.post_processor
    device = model.memory_bank.device
    record = record_of(module).to(device)
    ignored = None if ignored is None else ignored.to(device)
    assert isinstance(processor, LabelFreePostProcessor)
    before = (len(model.memory_bank), len(model.defects), float(processor.image_threshold))
    old_scores = _scores_as_new(record.maps, teach(record, model.lessons, model.ignored_patches), model.ignored_patches)
    old_verdicts = _image_scores(model, record.maps, old_scores) > before[2]
    if model.untaught_thresholds is None or not math.isclose(model.taught_threshold or 0, before[2], rel_tol=1e-6):
        # They are from the fit, or from a validation with labels after teaching
        model.untaught_thresholds = (before[2], float(processor.pixel_threshold))
    taught = teach(record, lessons, ignored)
    is_taught = bool(lessons) or ignored is not None
    model.replace_banks(taught.bank if is_taught else record.bank)
    model.ignored = torch.empty(0, dtype=torch.bool, device=device) if ignored is None else ignored
    model.record = record
    model.lessons = sorted(lessons, key=lambda lesson: lesson.name)

    gone, numbers = gone_groups(lessons), groups_of_lessons(record, lessons)
    stays = torch.tensor([group not in gone for group in record.maps.groups.tolist()], device=device)
    # New images are scored without the rows that they added
    new = [each for each in model.lessons if each.verdict == NORMAL and each.group == NO_GROUP]
    maps_of_new = [replace(each.map, groups=torch.tensor([numbers[each.name]], device=device)) for each in new]
    maps = join([record.maps.select(stays), *maps_of_new])
    scores = _scores_as_new(maps, taught, ignored)

    image_threshold, pixel_threshold = model.untaught_thresholds
    rule = "It is the same as before teaching." if is_taught else "It is that of the fit."
    fitted = model.score_maps(record.maps.scores, None).image_scores
    if is_taught and math.isclose(processor.cut(fitted), image_threshold, rel_tol=1e-3):  # from training images
        found = model.score_maps(scores, module.input_size)
        known_defects = int((~stays).sum())
        image_threshold, rule = _threshold(processor, found.image_scores, record, maps.groups, lessons, known_defects)
        if not math.isnan(pixel_threshold):
            pixel_threshold, _ = _threshold(processor, found.map_peaks, record, maps.groups, lessons, known_defects)
    processor.set_thresholds(image_threshold, pixel_threshold)
    model.taught_threshold = image_threshold
    if not is_taught:
        model.untaught_thresholds, model.taught_threshold = None, None

    scales = taught.defects[:0, 0]
    if len(taught.defects):  # calibrated with images that are not known defects
        kept = scores[:, -1].flatten(1).gather(1, maps.places)
        scales = calibrate_defects(taught, maps, kept, SHARE_FOR_DEFECTS * processor.false_alarms)
    live = torch.tensor(image_threshold, dtype=torch.float32, device=device)
    model.defect_bank = DefectBank(taught.defects, scales, live)
    new_scores = _scores_as_new(record.maps, taught, ignored)
    new_verdicts = _image_scores(model, record.maps, new_scores) > image_threshold
    return Change(
        rows=(before[0], len(model.memory_bank)),
        defects=(before[1], len(model.defects)),
        thresholds=(before[2], image_threshold),
        flipped=int((old_verdicts != new_verdicts).sum()),
        scored=len(new_verdicts),
        rule=rule,
    )


def _threshold(
    processor: LabelFreePostProcessor,
    scores: torch.Tensor,
    record: FitRecord,
    groups: torch.Tensor,
    lessons: Sequence[Lesson],
    known_defects: int,
) -> tuple[float, str]:
    """Return the threshold for scores of images as if they were new, and a line on how it was set."""
    if not len(scores):  # there are no map scores if the size of maps depends on the image
        return math.nan, ""
    usual = processor.cut(scores, known_defects)
    rule = f"It follows from the median and spread of {counted(len(scores), 'score')} of images as if they were new."
    share = processor.asked_false_alarms
    if share is None:
        return usual, rule
    numbers, last = groups_of_lessons(record, lessons), int(record.group_of_image.max())
    decisions = {numbers[each.name]: each for each in lessons if each.verdict == NORMAL and each.region is None}
    listed = groups.tolist()
    # People decide mostly about suspicious single new images, so these do not count
    chosen = [group <= last or (group in decisions and decisions[group].of_folder) for group in listed]
    some = (torch.tensor(chosen) & scores.isfinite().cpu()).nonzero().squeeze(1)
    decided = torch.tensor([group in decisions for group in listed])
    threshold, missing = decided_threshold(scores.cpu()[some], decided[some], share)
    if not math.isnan(threshold):
        return threshold, (
            f"It follows from decisions: the images with the highest scores of {counted(len(some), 'image')} were all "
            f"called normal, and {100 * share:.3g} % of good images may exceed it."
        )
    keys = dict(reversed(list(zip(record.group_of_image.tolist(), record.keys, strict=False))))
    names = [shown(keys[group]) for group in (listed[int(some[place])] for place in missing) if keys.get(group)]
    if len(names) > MOST_NAMED:
        names[MOST_NAMED:] = ["..."]
    if names:
        rule += (
            " Once the images with the highest scores are all decided, the decisions set it. Decide next about: "
            f"{', '.join(names)}."
        )
    return usual, rule


@torch.no_grad()
def training_facts(module: "DenoisingMixin") -> TrainingFacts:
    """Return what a model knows about the images of its training and teaching; nothing without a record of a fit."""
    model, processor = module.model, module.post_processor
    if model.record is None:
        return TrainingFacts()
    names = (*model.record.names, *(lesson.name for lesson in model.lessons))
    new = [each for each in model.lessons if each.group == NO_GROUP and each.verdict in {NORMAL, ADDED}]
    seen = [*model.record.appearances, *(each.appearance for each in new if each.appearance is not None)]
    quantiles = None
    if isinstance(processor, LabelFreePostProcessor) and not bool(processor.image_threshold.isnan()):
        record = model.record.to(model.memory_bank.device)
        ignored = model.ignored_patches
        scores = record.maps.scores
        if model.lessons or ignored is not None:
            scores = _scores_as_new(record.maps, teach(record, model.lessons, ignored), ignored)
        scores = model.score_maps(scores, None).image_scores
        scores = scores[scores.isfinite()]
        if len(scores):
            normalized = normalize(scores, processor.image_threshold.to(scores)).double()
            low, middle, high = (float(normalized.quantile(share)) for share in (0.05, 0.5, 0.95))
            quantiles = low, middle, high
    return TrainingFacts(tuple(sorted({name for name in names if name})), quantiles, UsualAppearance.of(seen))


def record_of(module: "DenoisingMixin") -> FitRecord:
    """Return the record of a model's fit, which teaching needs.

    Raises:
        ValueError: If there is no record, or the model has no threshold that could follow.
    """
    record, processor = module.model.record, module.post_processor
    if record is None:
        msg = "Teaching needs a record of the fit, which models from before 0.3 do not have: train the model again."
        raise ValueError(msg)
    if not isinstance(processor, LabelFreePostProcessor) or bool(processor.image_threshold.isnan()):
        msg = "Teaching needs a threshold of the default post-processor: train the model with that post-processor."
        raise ValueError(msg)
    if module.model.num_neighbors > 1:
        msg = "A model with num_neighbors > 1 cannot be taught: train it with num_neighbors=1."
        raise ValueError(msg)
    return record


def _scores_as_new(maps: PatchScoreMaps, taught: Taught, ignored: torch.Tensor | None) -> torch.Tensor:
    """Score images without their own rows and without defects, shape ``(n, banks, height, width)``."""
    scores = score_again(maps, taught)
    return scores if ignored is None else scores.masked_fill(ignored, 0)


def _image_scores(model: "SoftPatchModel", maps: PatchScoreMaps, scores: torch.Tensor) -> torch.Tensor:
    """Return image scores for patch scores of images as if they were new, with the model's bank of defects."""
    image_scores = model.score_maps(scores, None).image_scores
    if len(model.defects):
        normal = scores[:, -1].flatten(1).gather(1, maps.places)
        raised = model.defect_bank.score(normal, maps.features.flatten(0, 1))
        image_scores = torch.maximum(image_scores, raised.amax(dim=1))
    return image_scores
