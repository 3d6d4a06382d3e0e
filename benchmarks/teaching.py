# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""The effect of teaching: SoftPatchPlus is fitted, and then taught the truth about some images.

For each set, 120 images are trained on. The rows are:

- ``mirrored variant``, ``reddish variant``: three of the training images are mirrored, or have 0.3 times as much red.
  They are taught as normal. Measured are the false alarms on test images with the same change.
- ``fourth hole`` (the only row of the set ``plates``): new plates with a fourth hole are taught as normal. Measured
  are the false alarms on other plates of this kind.
- ``12 defects``: twelve defective test images were among the training images, and leave the test set. They are set
  aside, or taught as defects, without and with the region of their masks.
- ``6 missed defects``: six test images that were called normal are taught as defects, without and with the region.
- ``6 false alarms``: up to six good test images that were called anomalous are taught as normal.

A cell has the false alarms on good test images, the defects found among the others (the taught images do not count),
and the share called anomalous of the images like the taught ones: those of the variant, or the taught images.

Example::

    python benchmarks/teaching.py --sets kolektor mtile visa_macaroni1 --save docs/results/teaching.json
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ablation import is_bad, is_doubtful
from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components.search import NearestNeighborSearch
from anomalib_softpatch.components.teaching import NO_GROUP, Lesson, make_lesson
from anomalib_softpatch.images.decisions import DEFECT, NORMAL, SET_ASIDE
from anomalib_softpatch.images.finding import find_images
from anomalib_softpatch.images.reading import read_image
from anomalib_softpatch.models import SoftPatchModel
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.models.teaching import teach_model
from anomalib_softpatch.report.geometry import true_patches, visible_region
from anomalib_softpatch.text import counted
from common import accuracy_parser, describe_machine, print_table, save_results
from robustness import SETTINGS, NoisySet, check, fit
from synthetic import write_holes

TRAIN, GOOD, DEFECTS = 120, 60, 60
NOISE, TAUGHT, VARIANTS = 12, 6, 3
HOLES = (1, 2, 3, 4, 6, 12)
RED = (0.3, 1.0, 1.0)
KEYS = ("false alarms", "found", "taught")


class Person:
    """A set with its truth, and a model that is taught it.

    Args:
        folder: Set in the layout of MVTec AD.
        options: Options of the command line.
        model: Extracts the features.
        seed: Chooses the images.
    """

    def __init__(self, folder: Path, options: Namespace, model: SoftPatchModel, seed: int) -> None:
        self.model, self.options, self.seed, self.folder = model, options, seed, folder
        self.size = (options.image_size, options.image_size)
        self.transform = SoftPatch.configure_pre_processor(self.size).transform
        rng = np.random.default_rng(seed)
        test = [Path(path) for path in find_images(folder / "test")[0]]
        paths = {
            "train": [path for path in map(Path, find_images(folder / "train")[0]) if not is_doubtful(path.name)],
            "good": [path for path in test if path.parent.name == "good"],
            "defects": [path for path in test if path.parent.name != "good"],
        }
        most = {"train": TRAIN, "good": GOOD, "defects": DEFECTS}
        self.paths = {
            name: [each[place] for place in rng.permutation(len(each))[: most[name]]] for name, each in paths.items()
        }
        self.features = {name: self.extract(each) for name, each in self.paths.items()}

    def extract(self, paths: list[Path], mirrored: bool = False, colors: tuple[float, ...] = (1, 1, 1)) -> torch.Tensor:
        """Return the features of images, unchanged or changed."""
        features = []
        for path in paths:
            image = torch.from_numpy(read_image(path)[0])[None] * torch.tensor(colors).view(1, 3, 1, 1)
            image = image.flip(3) if mirrored else image
            features.append(self.model.extract(self.transform(image.float())))
        return torch.cat(features)

    def fit(self, train: torch.Tensor) -> None:
        """Fit the default settings and set a threshold without labels."""
        fit(self.model, train, SETTINGS["default"], self.options.coreset, self.seed)
        processor = LabelFreePostProcessor()
        processor.decide_without_labels(self.model.out_of_bag)
        # What teaching needs from a Lightning module
        self.module = Namespace(model=self.model, post_processor=processor, input_size=None)

    def lesson(self, verdict: str, name: str, features: torch.Tensor, image: int | None = None,
               region: torch.Tensor | None = None) -> Lesson:  # fmt: skip
        """Return the lesson about an image, which has a number if it was in training."""
        record = self.model.record
        assert record is not None
        group = NO_GROUP if image is None else int(record.group_of_image[image])
        return make_lesson(record, NearestNeighborSearch(record.bank), verdict, name, name, features, group, region)

    def region(self, number: int) -> torch.Tensor:
        """Return the patches of a defect."""
        path = self.paths["defects"][number]
        (file,) = (self.folder / "ground_truth" / path.parent.name).glob(f"{path.stem}*")
        mask = torch.from_numpy(np.asarray(Image.open(file).convert("L")) > 0)
        seen = visible_region(self.transform, (mask.shape[1], mask.shape[0]))
        return true_patches(mask.float(), seen, tuple(self.features["defects"].shape[1:3]))

    def anomalous(self, features: torch.Tensor) -> torch.Tensor:
        """Return which images are called anomalous."""
        scores = [self.model.score(image[None], self.size).pred_score for image in features]
        return torch.cat(scores) > self.module.post_processor.image_threshold

    def figures(self, good: torch.Tensor, defects: torch.Tensor, taught: torch.Tensor) -> dict[str, float]:
        """Return the shares that are called anomalous, in %."""
        return {
            name: 100 * float(self.anomalous(each).float().mean()) if len(each) else float("nan")
            for name, each in zip(KEYS, (good, defects, taught), strict=True)
        }


def measure_holes(person: Person) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Return the numbers before and after some plates with a fourth hole were taught, by how many were."""
    train, good, defects = (person.features[name] for name in ("train", "good", "defects"))
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_holes(Path(temporary), max(HOLES) + GOOD, person.seed)
        holes = person.extract(paths)
    told, like = holes[: max(HOLES)], holes[max(HOLES) :]
    person.fit(train)
    before = person.figures(good, defects, like)
    rows = {}
    for count in HOLES:
        teach_model(person.module, [person.lesson(NORMAL, f"{i:03}", told[i]) for i in range(count)])
        rows[f"fourth hole, {counted(count, 'image')} normal"] = before, person.figures(good, defects, like)
    return rows


def measure(person: Person) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Return the numbers of each row, before and after teaching."""
    if person.folder.name == "plates":
        return measure_holes(person)
    if any(is_bad(path.name) for path in person.paths["train"]):
        msg = f"{person.folder.name} has defects among its training images and no masks: see decision_order.py."
        raise ValueError(msg)
    train, good, defects = (person.features[name] for name in ("train", "good", "defects"))
    rows = {}
    for name, change in (("mirrored", {"mirrored": True}), ("reddish", {"colors": RED})):
        rare = person.extract(person.paths["train"][:VARIANTS], **change)
        like = person.extract(person.paths["good"], **change)
        person.fit(torch.cat((rare, train[VARIANTS:])))
        before = person.figures(good, defects, like)
        teach_model(person.module, [person.lesson(NORMAL, str(i), rare[i], i) for i in range(VARIANTS)])
        rows[f"{name} variant, {VARIANTS} images normal"] = before, person.figures(good, defects, like)

    person.fit(torch.cat((train, defects[:NOISE])))
    noise, others = defects[:NOISE], defects[NOISE:]
    before = person.figures(good, others, noise)
    for text, verdict, shown in (
        ("set aside", SET_ASIDE, False), ("defects", DEFECT, False), ("defects, shown", DEFECT, True),
    ):  # fmt: skip
        lessons = [
            person.lesson(verdict, f"{i:03}", noise[i], len(train) + i, person.region(i) if shown else None)
            for i in range(NOISE)
        ]
        teach_model(person.module, lessons)
        rows[f"{NOISE} defects in training: {text}"] = before, person.figures(good, others, noise)

    teach_model(person.module, [])
    found, alarms = person.anomalous(others), person.anomalous(good)
    missed = (~found).nonzero().squeeze(1).tolist()[:TAUGHT]
    rest = [i for i in range(len(others)) if i not in missed]
    before = person.figures(good, others[rest], others[missed])
    for text, shown in (("defects", False), ("defects, shown", True)):
        lessons = [
            person.lesson(DEFECT, f"{i:03}", others[i], region=person.region(NOISE + i) if shown else None)
            for i in missed
        ]
        teach_model(person.module, lessons)
        rows[f"{TAUGHT} missed defects: {text}"] = before, person.figures(good, others[rest], others[missed])
    called = alarms.nonzero().squeeze(1).tolist()[:TAUGHT]
    rest = [i for i in range(len(good)) if i not in called]
    teach_model(person.module, [])
    before = person.figures(good[rest], others, good[called])
    teach_model(person.module, [person.lesson(NORMAL, f"{i:03}", good[i]) for i in called])
    rows[f"{TAUGHT} false alarms: normal"] = before, person.figures(good[rest], others, good[called])
    return rows


def run(
    description: str | None,
    title: str,
    columns: Sequence[str],
    keys: Sequence[str],
    measured: Callable[[Person], Mapping[str, Sequence[dict[str, float]]]],
) -> None:
    """Measure all sets with all seeds, and print the table.

    Args:
        description: Docstring of the benchmark.
        title: Title above the table.
        columns: Headings of the columns.
        keys: Numbers that a cell shows, in %.
        measured: Returns the numbers of each row, for each column.
    """
    parser = accuracy_parser(description, ratios=[], sets=["kolektor", "mtile", "visa_macaroni1"])
    options = parser.parse_args()
    check(options, parser)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)
    headings = [f"{' / '.join(keys)} [%]", *columns]
    rows: dict[str, list[list[dict[str, float]]]] = {}
    model = SoftPatchModel(options.layers, options.backbone).eval()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.sets:
            for seed in options.seeds:
                place = NoisySet(name, seed, options, Path(temporary), model).place
                person = Person(Path(place.root, place.category), options, model, seed)
                for text, figures in measured(person).items():
                    cells = rows.setdefault(f"{name}: {text}", [[] for _ in columns])
                    for cell, each in zip(cells, figures, strict=True):
                        cell.append(each | {"seed": seed})
                    print(f"# {name}, seed {seed}: {text}: {figures}", flush=True)
                save_results(options.save, title, headings, rows, keys)
    print_table(headings, rows, keys)


def main() -> None:
    """Measure all sets, and print the table."""
    run(__doc__, "What a model does before and after it was taught", ("before", "after"), KEYS, measure)


if __name__ == "__main__":
    main()
