# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""From decisions about images to a taught checkpoint."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components.search import NearestNeighborSearch
from anomalib_softpatch.components.teaching import NO_GROUP, FitRecord, Lesson, make_lesson
from anomalib_softpatch.images.appearance import Appearance, appearance, mean_colors
from anomalib_softpatch.images.decisions import (
    ADDED,
    DEFECT,
    NORMAL,
    SET_ASIDE,
    UNDECIDED,
    Decision,
    Region,
    region_mask,
)
from anomalib_softpatch.images.hashing import hash_files
from anomalib_softpatch.images.paths import real_folder, to_text
from anomalib_softpatch.images.reading import UnreadableImageError, image_size, read_image
from anomalib_softpatch.models import load_model
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.models.teaching import record_of, teach_model
from anomalib_softpatch.report.geometry import true_patches, visible_region
from anomalib_softpatch.report.ranking import check_device
from anomalib_softpatch.teaching.command import ADD, FORGET
from anomalib_softpatch.text import counted, shown

if TYPE_CHECKING:
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin


@dataclass(frozen=True)
class Report:
    """What teaching changed, in words."""

    lines: list[str]  # score and verdict of each decided image that was read, before and after; perhaps a note
    summary: str


def teach_checkpoint(
    checkpoint: Path,
    decisions: Sequence[Decision],
    output: Path,
    *,
    ignore: Path | None = None,
    replace: bool = False,
    device: str = "auto",
) -> Report:
    """Teach the model of a checkpoint, which does not change, and write another checkpoint.

    Args:
        checkpoint: Checkpoint of SoftPatch or SoftPatchPlus.
        decisions: Decisions about images, see :func:`~anomalib_softpatch.images.decisions.read_decisions`.
        output: Checkpoint to write.
        ignore: Mask of the pixels to ignore; ``None`` keeps the earlier one.
        replace: Take back everything that was taught before.
        device: Device for the backbone, ``auto`` for a GPU if there is one.

    Raises:
        ValueError: If the model cannot be taught, or if an image or a region cannot be used.
        FileNotFoundError: If a decided image cannot be found.
    """
    module = cast("DenoisingMixin", load_model(checkpoint).eval())
    record = record_of(module)
    images = _Images(module, record, device)
    lessons = {} if replace else {lesson.name: lesson for lesson in module.model.lessons}
    for name, about in images.by_name(decisions, list(lessons.values())).items():
        lesson = images.lesson(name, about, lessons.get(name))
        if lesson is not None:
            lessons[name] = lesson
        elif about[0].verdict == FORGET:
            lessons.pop(name, None)
    module.model.feature_extractor.to(module.model.memory_bank.device)  # the device on which the model is saved
    _refuse_copies(list(lessons.values()))
    ignored = None if replace else module.model.ignored_patches
    ignored = ignored if ignore is None else images.ignored(ignore)
    before = images.model_verdicts()
    change = teach_model(module, list(lessons.values()), ignored)
    after = images.model_verdicts()
    module.save_changed(checkpoint, output)
    lines = [
        f"{images.verdicts[name]:10}{before[name]} -> {after[name]}  {shown(images.paths[name])}" for name in before
    ]
    if not all(record.names):
        lines.append("Some training images had no files when the model was trained. You cannot decide about those.")
    counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(Counter(images.verdicts.values()).items()))
    summary = (
        f"Taught {counts or 'nothing about images'}. The memory bank has {change.rows[1]} patches (before: "
        f"{change.rows[0]}), the bank of defects {change.defects[1]} ({change.defects[0]}); the threshold is "
        f"{change.thresholds[1]:.4g} ({change.thresholds[0]:.4g}). {change.rule} Of "
        f"{counted(change.scored, 'training image')} scored as if they were new, "
        f"{change.flipped} have a different verdict than before."
    )
    return Report(lines, summary)


def _refuse_copies(lessons: Sequence[Lesson]) -> None:
    """Refuse different verdicts about training images that count as copies of one."""
    first: dict[int, Lesson] = {}
    for lesson in lessons:
        if lesson.group == NO_GROUP or lesson.verdict not in {NORMAL, DEFECT}:
            continue
        other = first.setdefault(lesson.group, lesson)
        if other.verdict != lesson.verdict:
            msg = (
                f"{other.path!r} is {other.verdict} and {lesson.path!r} is {lesson.verdict}, but they count as copies "
                "of one image. Keep one of them, or give the region of the defect and make the other undecided."
            )
            raise ValueError(msg)


class _Images:
    """Decided images: the verdicts, and the files, by name (the hash of the file)."""

    def __init__(self, module: "DenoisingMixin", record: FitRecord, device: str) -> None:
        self.module = module
        self.record = record
        self.verdicts: dict[str, str] = {}
        self.paths: dict[str, Path] = {}
        self._search = NearestNeighborSearch(record.bank)
        self._features: dict[str, torch.Tensor] = {}
        self._of_folder: set[str] = set()  # names of images in folders of normal images
        self._device = check_device(device)
        module.model.feature_extractor.to(self._device)
        self._transform = getattr(module.pre_processor, "transform", None)

    def by_name(self, decisions: Sequence[Decision], lessons: Sequence[Lesson]) -> dict[str, list[Decision]]:
        """Return the decisions about each image, by the hash of its file. Missing files are known by their paths."""
        by_path = {str(real_folder(Path(lesson.path))): lesson.name for lesson in lessons}
        names = dict(zip(self.record.keys, self.record.names, strict=False))
        by_path |= {str(real_folder(Path(key))): name for key, name in names.items()}
        gathered: dict[str, list[Decision]] = {}
        unknown = []
        for decision in (each for each in decisions if each.verdict != UNDECIDED):
            path = decision.path
            name = hash_files(path) if path.is_file() else by_path.get(str(real_folder(path)), "")
            if name:
                gathered.setdefault(name, []).append(decision)
            else:
                unknown.append(path)
        if unknown:
            number = counted(len(unknown), "decided image")
            msg = f"{number} cannot be found and is not known to the model, {str(unknown[0])!r} for one."
            raise FileNotFoundError(msg)
        for name, about in gathered.items():
            verdicts = {each.verdict for each in about}
            if ADD in verdicts:
                self._of_folder.add(name)
            # Decisions about single images come before those about a folder
            counts = verdicts - {ADD, ADDED} or verdicts & {ADD} or verdicts
            gathered[name] = [each for each in about if each.verdict in counts]
            by_verdict = {each.verdict: each for each in gathered[name]}
            if len(by_verdict) > 1:
                one, other, *_ = by_verdict.values()
                both = f"{one.verdict} as {str(one.path)!r} and {other.verdict} as {str(other.path)!r}"
                msg = f"The same image is {both}. Keep one of them."
                raise ValueError(msg)
        return gathered

    def lesson(self, name: str, about: Sequence[Decision], known: Lesson | None) -> Lesson | None:
        """Return the lesson of decisions about an image (``known``: its earlier one); ``None`` if there is none."""
        verdict, path, group = about[0].verdict, about[0].path, self.record.group_of(name)
        of_folder = verdict in {ADD, ADDED}
        was_added = name in self._of_folder or (known is not None and known.of_folder)
        if of_folder and known is not None and not (verdict == ADD and known.verdict == ADDED):
            return replace(known, of_folder=was_added)  # somebody has decided about this one
        if of_folder and group != NO_GROUP:  # a training image
            return None
        if verdict == FORGET:
            verdict = SET_ASIDE
        self.verdicts[name], self.paths[name] = verdict, path
        if verdict == SET_ASIDE:
            if group == NO_GROUP:
                return None
            maps = self.record.maps
            rows, nothing = self.record.bank.features[:0], maps.select(maps.groups < NO_GROUP)
            places = torch.empty(0, dtype=torch.long)
            return Lesson(name, verdict, to_text(path), group, rows, places, nothing, of_folder=was_added)
        features, seen = self._extract(path)
        if not of_folder:  # the features of a whole folder would take much memory
            self._features[name] = features
        regions = [each.region for each in about if each.region is not None]
        lesson = make_lesson(
            self.record,
            self._search,
            NORMAL if verdict == ADD else verdict,
            name,
            to_text(path),
            features,
            group,
            region=self._patches(path, regions, features.shape[:2]) if len(regions) == len(about) else None,
            most=self.record.rows_of_an_image if of_folder else None,
        )
        return replace(lesson, appearance=seen, of_folder=was_added)

    def ignored(self, mask: Path) -> torch.Tensor | None:
        """Return the patches that a mask touches, boolean, of the grid's shape; ``None`` for a black mask."""
        pixels = torch.from_numpy(read_image(mask)[0] != 0).any(dim=0)
        if not bool(pixels.any()):
            return None
        seen = visible_region(self._transform, (pixels.shape[1], pixels.shape[0]))
        grid = self.record.maps.scores.shape[-2:]
        touched = F.interpolate(seen.crop(pixels.float())[None, None], size=grid, mode="area")[0, 0] > 0
        if bool(touched.all()):
            msg = f"ignore={str(mask)!r} covers the whole image: no part of it would be left to score."
            raise ValueError(msg)
        return touched

    def _patches(self, path: Path, regions: Sequence[Region], grid: Sequence[int]) -> torch.Tensor:
        size = image_size(path)
        masks = [torch.from_numpy(region_mask(region, size)) for region in regions]
        seen = visible_region(self._transform, size)
        return torch.stack([true_patches(mask, seen, (grid[0], grid[1])) for mask in masks]).any(dim=0)

    def _extract(self, path: Path) -> tuple[torch.Tensor, Appearance]:
        try:
            values = read_image(path, self.module.largest_value)[0]
        except UnreadableImageError as error:
            msg = f"{str(path)!r} cannot be read: {error}. Leave it out."
            raise ValueError(msg) from error
        image = torch.from_numpy(values)[None]
        image = image if self._transform is None else self._transform(image)
        model = self.module.model
        features = model.extract(image.to(self._device)).to(model.memory_bank)[0]
        grid = self.record.maps.scores.shape[-2:]
        if features.shape[:2] != grid:
            msg = (
                f"{str(path)!r} gives {features.shape[0]} x {features.shape[1]} patches and the training images "
                f"{grid[0]} x {grid[1]}: a model that does not resize images can only be taught images of one size."
            )
            raise ValueError(msg)
        return features, appearance(path, mean_colors(values))

    @torch.no_grad()
    def model_verdicts(self) -> dict[str, str]:
        """Return the model's normalized score and verdict, as text, for each decided image that was read."""
        processor, model = self.module.post_processor, self.module.model
        assert isinstance(processor, LabelFreePostProcessor)  # see record_of
        threshold = float(processor.image_threshold)
        size = self.module.input_size
        found = {}
        for name, features in self._features.items():
            scores = model.score(features[None], size or features.shape[:2]).pred_score
            assert scores is not None
            score = float(scores[0])
            word = "anomalous" if score > threshold else "normal"
            found[name] = f"{score / (score + threshold) if score else 0:.3f} {word:9}"
        return found
