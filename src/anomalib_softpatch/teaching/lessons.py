# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""From decisions about images to a checkpoint that knows them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from anomalib_softpatch.components.search import NearestNeighborSearch
from anomalib_softpatch.components.teaching import (
    ADDED,
    NO_GROUP,
    SET_ASIDE,
    FitRecord,
    Lesson,
    make_lesson,
)
from anomalib_softpatch.images.decisions import UNDECIDED, Decision, Region, region_mask
from anomalib_softpatch.images.hashing import hash_files
from anomalib_softpatch.images.paths import real_folder, to_text
from anomalib_softpatch.images.reading import image_size, read_image
from anomalib_softpatch.models import load_model
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.models.teaching import Change, record_of, teach_model
from anomalib_softpatch.report.geometry import true_patches, visible_region
from anomalib_softpatch.text import counted, shown

if TYPE_CHECKING:
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin


@dataclass(frozen=True)
class Report:
    """What teaching did, for people.

    Attributes:
        lines: Score and verdict of each decided image before and after.
        summary: What changed as a whole.
    """

    lines: list[str]
    summary: str


def teach_checkpoint(
    checkpoint: Path, decisions: Sequence[Decision], ignore: Path | None, output: Path, device: str = "cpu"
) -> Report:
    """Teach the model of a checkpoint, and write another checkpoint.

    Args:
        checkpoint: Checkpoint of SoftPatch or SoftPatchPlus; it stays as it is.
        decisions: What is said about images.
        ignore: Mask of what nothing is said about; ``None``: as before.
        output: Checkpoint to write.
        device: Device for the backbone.

    Returns:
        What it did.

    Raises:
        ValueError: If the model cannot be taught, or an image or a region cannot be used.
    """
    module = cast("DenoisingMixin", load_model(checkpoint).eval())
    record = record_of(module)
    images = _Images(module, record, device)
    lessons = {lesson.name: lesson for lesson in module.model.lessons}
    for name, about in images.by_name(decisions, lessons.values()).items():
        lesson = images.lesson(name, about)
        if lesson is None:
            lessons.pop(name, None)
        else:
            lessons[name] = lesson
    ignored = module.model.ignored_patches if ignore is None else images.ignored(ignore)
    before = images.scores()
    change = teach_model(module, list(lessons.values()), ignored)
    after = images.scores()
    module.save_changed(checkpoint, output)
    lines = [
        f"{images.verdicts[name]:10}{_verdict(*before[name])} -> {_verdict(*after[name])}  {shown(images.paths[name])}"
        for name in before
    ]
    return Report(lines, _summary(images.verdicts.values(), change))


class _Images:
    """Images that people have said something about.

    Attributes:
        verdicts: What was said, by name.
        paths: Where the files are.
    """

    def __init__(self, module: "DenoisingMixin", record: FitRecord, device: str) -> None:
        self.module = module
        self.record = record
        self.verdicts: dict[str, str] = {}
        self.paths: dict[str, Path] = {}
        self._search = NearestNeighborSearch(record.bank)
        self._features: dict[str, torch.Tensor] = {}
        self._device = torch.device(device)
        self._transform = getattr(module.pre_processor, "transform", None)

    def by_name(self, decisions: Sequence[Decision], lessons: Iterable[Lesson]) -> dict[str, list[Decision]]:
        """Gather what is said about each image, by what tells it from others.

        Files that are gone are known by their paths.
        """
        by_path = {str(real_folder(Path(lesson.path))): lesson.name for lesson in lessons}
        by_path |= {str(real_folder(Path(key))): name for key, name in zip(self.record.keys, self.record.names)}  # noqa: B905
        gathered: dict[str, list[Decision]] = {}
        unknown = []
        for decision in decisions:
            path = decision.path
            name = hash_files(path) if path.is_file() else by_path.get(str(real_folder(path)), "")
            if not name:
                unknown.append(path)
                continue
            gathered.setdefault(name, []).append(decision)
        if unknown:
            msg = (
                f"{counted(len(unknown), 'decided image')} cannot be found and is not known to the model, "
                f"{str(unknown[0])!r} for one."
            )
            raise FileNotFoundError(msg)
        for about in gathered.values():
            verdicts = {each.verdict for each in about} - {UNDECIDED}
            if len(verdicts) > 1:
                first, second, *_ = sorted(about, key=lambda each: each.verdict)
                msg = (
                    f"The same image is {first.verdict} as {str(first.path)!r} and {second.verdict} as "
                    f"{str(second.path)!r}. Leave one of them."
                )
                raise ValueError(msg)
        return gathered

    def lesson(self, name: str, about: Sequence[Decision]) -> Lesson | None:
        """Return the lesson of what is said about an image; ``None`` if nothing is said any more."""
        verdict = max(each.verdict for each in about)  # the undecided one is empty
        path, group = about[0].path, self.record.group_of(name)
        if verdict == "forget":
            verdict = UNDECIDED if group == NO_GROUP else SET_ASIDE
        if verdict == ADDED and group != NO_GROUP:
            verdict = UNDECIDED  # a training image has been added already
        if path.is_file():
            self._extract(name, path)
        if verdict != UNDECIDED or name in self._features:
            self.verdicts[name], self.paths[name] = verdict or "undecided", path
        if verdict == UNDECIDED or (verdict == SET_ASIDE and group == NO_GROUP):
            return None
        if verdict == SET_ASIDE:
            maps = self.record.maps
            return Lesson(
                name, verdict, to_text(path), group, self.record.bank.features[:0], maps.select(maps.groups < NO_GROUP)
            )
        regions = [each.region for each in about if each.region is not None]
        return make_lesson(
            self.record,
            self._search,
            verdict,
            name,
            to_text(path),
            self._features[name],
            group,
            region=self._patches(path, regions, self._features[name].shape[:2]) if len(regions) == len(about) else None,
        )

    def ignored(self, mask: Path) -> torch.Tensor:
        """Return the patches that a mask covers, boolean of the shape of the grid."""
        _, height, width = self.record.maps.scores.shape[-3:]
        size = image_size(mask)
        covered = self._patches(mask, [mask], (height, width), size)
        if bool(covered.all()):
            msg = f"ignore={str(mask)!r} covers the whole image: nothing would be left to look at."
            raise ValueError(msg)
        return covered

    def _patches(
        self, path: Path, regions: Sequence[Region], grid: Sequence[int], size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        size = size or image_size(path)
        masks = [torch.from_numpy(region_mask(region, size)) for region in regions]
        seen = visible_region(self._transform, size)
        return torch.stack([true_patches(mask, seen, (grid[0], grid[1])) for mask in masks]).any(dim=0)

    def _extract(self, name: str, path: Path) -> None:
        image = torch.from_numpy(read_image(path, self.module.largest_value)[0])[None]
        image = image if self._transform is None else self._transform(image)
        model = self.module.model
        model.feature_extractor.to(self._device)
        features = model.extract(image.to(self._device)).to(model.memory_bank)[0]
        model.feature_extractor.to(model.memory_bank.device)
        grid = self.record.maps.scores.shape[-2:]
        if features.shape[:2] != grid:
            msg = (
                f"{str(path)!r} gives {features.shape[0]} x {features.shape[1]} patches and the training images "
                f"{grid[0]} x {grid[1]}: a model that takes images as they are can be taught images of one size only."
            )
            raise ValueError(msg)
        self._features[name] = features

    @torch.no_grad()
    def scores(self) -> dict[str, tuple[float, float]]:
        """Return the score and the threshold of each decided image that is there, normalized."""
        processor, model = self.module.post_processor, self.module.model
        assert isinstance(processor, LabelFreePostProcessor)  # see record_of
        threshold = float(processor.image_threshold)
        size = self.module.input_size
        found = {}
        for name, features in self._features.items():
            score = model.score(features[None], size or features.shape[:2]).pred_score
            assert score is not None
            found[name] = (float(score[0]), threshold)
        return found


def _verdict(score: float, threshold: float) -> str:
    word = "anomalous" if score > threshold else "normal"
    return f"{score / (score + threshold) if score else 0:.3f} {word:9}"


def _summary(verdicts: Iterable[str], change: Change) -> str:
    counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(Counter(verdicts).items()))
    return (
        f"Taught {counts or 'nothing about images'}. The memory bank has {change.rows[1]} patches (before "
        f"{change.rows[0]}), the bank of defects {change.defects[1]} ({change.defects[0]}); the threshold is "
        f"{change.thresholds[1]:.4g} ({change.thresholds[0]:.4g}). Of {counted(change.scored, 'training image')} "
        f"scored as if they were new, {change.flipped} have another verdict than before."
    )
