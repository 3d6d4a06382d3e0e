# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

r"""Which training images to look at first: the effect of decisions in different orders.

For each set, 120 good images and 12 defects are trained on: noise of 10 %. Of the solar cells, 120 are trained on as
they are, without those that are neither surely good nor surely bad. The decisions are the truth: of the first images
of an order, good ones are taught as normal and the others as defects, without a region. The orders are:

- ``most suspicious``: by out-of-bag scores, the highest first;
- ``borderline``: by the distance of these scores to the threshold, the smallest first;
- ``random``.

A cell has the share of the training defects without a decision, the false alarms on good test images, and the share of
defects found among those that were not trained on.

Example::

    python benchmarks/decision_order.py --sets kolektor mtile visa_macaroni1 --save docs/results/decision_order.json
"""

import numpy as np
import torch

from ablation import is_bad
from anomalib_softpatch.images.decisions import DEFECT, NORMAL
from anomalib_softpatch.models.teaching import teach_model
from teaching import NOISE, Person, run

COUNTS = (5, 10, 20, 40)
KEYS = ("defects left", "false alarms", "found")


def measure(person: Person) -> dict[str, list[dict[str, float]]]:
    """Return the numbers of each order, after each number of decisions."""
    images, good, defects = (person.features[name] for name in ("train", "good", "defects"))
    bad = [is_bad(path.name) for path in person.paths["train"]]
    if not any(bad):
        images, defects = torch.cat((images, defects[:NOISE])), defects[NOISE:]
        bad += [True] * NOISE
    person.fit(images)
    assert person.model.out_of_bag is not None
    assert person.model.record is not None
    # With so few images, nearly all have a score; the others come last
    record, scores = person.model.record, torch.full((len(images),), -torch.inf)
    place = {group: number for number, group in enumerate(record.maps.groups.tolist())}
    for image, group in enumerate(record.group_of_image.tolist()):
        if group in place:
            scores[image] = person.model.out_of_bag.image_scores[place[group]]
    threshold = float(person.module.post_processor.image_threshold)
    orders = {
        "most suspicious": scores.argsort(descending=True).tolist(),
        "borderline": (scores - threshold).abs().argsort().tolist(),
        "random": np.random.default_rng(person.seed).permutation(len(images)).tolist(),
    }
    rows: dict[str, list[dict[str, float]]] = {}
    for name, order in orders.items():
        for count in (0, *COUNTS):
            decided = order[:count]
            # Copies count as one image, and one decision about it is enough
            groups = {int(record.group_of_image[image]): image for image in reversed(decided)}
            lessons = [
                person.lesson(DEFECT if bad[image] else NORMAL, f"{image:03}", images[image], image)
                for image in groups.values()
            ]
            teach_model(person.module, lessons)
            alarms, found = (100 * float(person.anomalous(each).float().mean()) for each in (good, defects))
            left = 100 * (1 - sum(bad[image] for image in decided) / sum(bad))
            rows.setdefault(name, []).append(dict(zip(KEYS, (left, alarms, found), strict=True)))
    return rows


def main() -> None:
    """Measure all sets, and print the table."""
    title = "What decisions about training images are worth, in three orders"
    run(__doc__, title, [f"{count} decisions" for count in (0, *COUNTS)], KEYS, measure)


if __name__ == "__main__":
    main()
