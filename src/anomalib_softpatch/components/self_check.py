# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Self-check: how far a fit can be trusted, judged without labels.

Out-of-bag scores are what training images would score had they not been in training. The limits are those of
statistical tests at the level of 5 %; none is fitted to images. A share ``a`` of false alarms is requested, and a
phrase such as "about 5 %" means within a factor of two:

- With 95 % confidence, no more than a share of ``2 a`` exceeds the highest score of ``n`` images if ``(1 - 2 a)^n`` is
  0.05 or less: 29 images for 5 % (Wilks, Determination of Sample Sizes for Setting Tolerance Limits, Annals of
  Mathematical Statistics 1941). With fewer images the threshold should not be used.
- More images above the threshold than ``2 a`` and chance explain are a second group: defects, or a rare variant of good
  images. A person has to look at them.

``docs/self_check.md`` compares the verdicts with labels: defects that score like good images are not seen.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.stats import beta, binom, spearmanr

from anomalib_softpatch.components.duplicates import representatives
from anomalib_softpatch.components.feature_store import FeatureStore
from anomalib_softpatch.components.memory_bank import DenoisingResult
from anomalib_softpatch.text import counted

Verdict = Literal["trust it", "look at the proposed images first", "do not use it"]
TRUST: Verdict = "trust it"
LOOK: Verdict = "look at the proposed images first"
REFUSE: Verdict = "do not use it"

TRUST_ADVICE = "Use it if few of the images are bad: this check does not see bad images that score like good ones."
LEVEL = 0.05  # of all statistical tests
FACTOR = 2.0  # "about" a share of false alarms means within this factor
# To check the alignment: images and positions that are compared, and how far away counts as the same place
ALIGNMENT_IMAGES, ALIGNMENT_PLACES, SAME_PLACE = 16, 64, 2
# Rows of the memory bank whose radii are checked
RADII_ROWS = 2048
# Share of an image's patches, those with the highest noise scores, by which two halves of the images rank it
RANKED_SHARE = 0.1
# Images are called large if a side has more than this many times the pixels that the model sees
LARGE = 2.0


@dataclass(frozen=True)
class FitFacts:
    """Facts about a fit, as plain data that JSON can hold; ``None`` for what is not known.

    Args:
        images: Number of training images.
        different: Number of training images with copies counted once.
        scores: Finite out-of-bag scores of the different images among those that were scored.
        repeatability: Rank correlation of the scores of these images against two halves of the others.
        removed: Largest share of the training patches that was removed from a memory bank.
        radii: Share of the patches of the memory bank whose support radius is larger than the distance to the nearest
            patch from another image in the bank.
        same_place: Share of patches whose most similar patch of another image lies at about the same place.
        same_place_by_chance: The share that is expected by chance.
    """

    images: int
    different: int
    scores: tuple[float, ...]
    repeatability: float | None
    removed: float
    radii: float
    same_place: float | None
    same_place_by_chance: float


@dataclass(frozen=True)
class SelfCheck:
    """Verdict about a fit.

    Args:
        verdict: What to do.
        reason: Why, as the end of a sentence.
        advice: What to do next, as a sentence.
        facts: What the verdict is based on.
        threshold: Threshold of the image score.
        asked: Requested share of false alarms; ``None`` if the threshold does not come from such a share.
        above: Number of the scored training images that are above the threshold.
        interval: Smallest and largest share of false alarms that these images allow for; ``None`` without scores.
        second_group: Whether more images are above the threshold than twice the share and chance explain.
        scale: Height and width of the images divided by what the model sees, the larger ratio; ``None`` if not known.
    """

    verdict: Verdict
    reason: str
    advice: str
    facts: FitFacts
    threshold: float
    asked: float | None
    above: int
    interval: tuple[float, float] | None
    second_group: bool
    scale: float | None

    @property
    def false_alarms(self) -> str:
        """The share of false alarms that the threshold gives, as the end of a sentence."""
        if self.interval is None:
            return "one whose false alarms are not known"
        low, high = self.interval
        between = f"for between {_percent(low)} and {_percent(high)} % of false alarms"
        if self.asked is None:
            return between
        asked = _percent(self.asked)
        if self.asked / FACTOR <= low and high <= FACTOR * self.asked:
            between = f"for about {asked} % of false alarms"
        else:
            between += f" ({asked} % requested)"
        return f"{between} if the images are good, for fewer if defects are among them"

    @property
    def lines(self) -> list[str]:
        """The check as lines of text: the verdict, the threshold and the images, and further remarks."""
        facts = self.facts
        copies = f" ({facts.images} with copies)" if facts.different < facts.images else ""
        lines = [f"Self-check: {self.verdict}: {self.reason}. {self.advice}"]
        scored = len(facts.scores)
        if scored:
            lines.append(
                f"{counted(facts.different, 'different image')}{copies}: the threshold is {self.false_alarms}. Of "
                f"{scored} scored as if they were new, {self.above} ({_percent(self.above / scored)} %) are above it"
                f"{', a second group that counts as anomalous' if self.second_group else ''}."
            )
        parts = []
        if facts.repeatability is not None:
            parts.append(f"the rankings by two halves of the images have a correlation of {facts.repeatability:.2f}")
        parts.append(f"{_percent(facts.removed)} % of the patches were removed, and support radii have an effect on "
                     f"{_percent(facts.radii)} % of the memory bank")  # fmt: skip
        if facts.same_place is not None:
            aligned = facts.same_place > 0.5  # noqa: PLR2004  # most of them
            parts.append(
                f"the images are {'' if aligned else 'not '}aligned (for {_percent(facts.same_place)} % of the "
                "patches, the most similar patch of another image is at about the same place; by chance it would be "
                f"{_percent(facts.same_place_by_chance)} %)"
            )
        if self.scale is not None and self.scale > LARGE:
            parts.append(f"images are {self.scale:.1f} times as large as the model sees them: tiny defects are lost")
        text = "; ".join(parts)
        return [*lines, f"{text[0].upper()}{text[1:]}."]

    @property
    def record(self) -> dict[str, Any]:
        """The check as plain data."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "advice": self.advice,
            "lines": self.lines,
            "images": self.facts.images,
            "different_images": self.facts.different,
            "scored_images": len(self.facts.scores),
            "above_threshold": self.above,
            "second_group": self.second_group,
            "false_alarms_asked": self.asked,
            "false_alarms_between": None if self.interval is None else list(self.interval),
            "repeatability": self.facts.repeatability,
            "removed_share": self.facts.removed,
            "radii_share": self.facts.radii,
            "same_place_share": self.facts.same_place,
            "image_scale": self.scale,
        }


def rate_interval(count: float, images: int) -> tuple[float, float]:
    """Return the exact 95 % confidence interval of a rate (Clopper and Pearson, Biometrika 1934).

    Args:
        count: Number of images with the property; a fraction if it is computed from an expected rate.
        images: Number of all images, at least 1.
    """
    low = float(beta.ppf(LEVEL / 2, count, images - count + 1)) if count > 0 else 0.0
    high = float(beta.ppf(1 - LEVEL / 2, count + 1, images - count)) if count < images else 1.0
    return low, high


def fewest_images(rate: float) -> int:
    """Return how many images it takes to contain, with 95 % confidence, something of a given rate (Wilks 1941)."""
    return math.ceil(math.log(LEVEL) / math.log1p(-rate))


def gather_facts(
    store: FeatureStore, result: DenoisingResult, groups: torch.Tensor, images: torch.Tensor, image_scores: torch.Tensor
) -> FitFacts:
    """Gather the facts about a fit.

    Args:
        store: Features of all patches.
        result: Result of the fit.
        groups: Number of each image's group of copies, which count once, shape ``(images,)``.
        images: Numbers of the images that were scored out of bag, shape ``(n,)``.
        image_scores: Their out-of-bag scores, shape ``(n,)``.
    """
    different = representatives(groups.cpu()[images]).sort().values
    ranked = None
    if result.scores is not None:
        ranked = repeatability(store, result, groups, result.scores.fused, images[different])
    same_place, by_chance = same_place_share(store)
    patches = result.kept[0, 0].numel()
    return FitFacts(
        images=len(groups),
        different=len(groups.unique()),
        scores=tuple(score for score in image_scores.cpu()[different].tolist() if math.isfinite(score)),
        repeatability=ranked,
        removed=1 - float(result.kept.float().mean(dim=(1, 2, 3)).min()),
        radii=radii_share(result.features, result.radii, groups[result.indices // patches]),
        same_place=same_place,
        same_place_by_chance=by_chance,
    )


@torch.no_grad()
def repeatability(
    store: FeatureStore, result: DenoisingResult, groups: torch.Tensor, scores: torch.Tensor, images: torch.Tensor
) -> float | None:
    """Return how similarly two halves of the images rank images: Spearman's rank correlation.

    Each image is scored twice: against the patches of the memory bank from one half of the images, and against those
    from the other half, without its own patches and those of its copies. Only its patches with the highest noise scores
    are compared, since they decide the score.

    Args:
        store: Features of all patches.
        result: Result of the fit.
        groups: Number of each image's group of copies, shape ``(images,)``. A group is not split.
        scores: Noise scores, shape ``(images, height, width)``.
        images: Numbers of the images to rank, shape ``(n,)``.

    Returns:
        The correlation; ``None`` if fewer than 3 images can be scored by both halves, or if all scores are equal.
    """
    patches, device = scores[0].numel(), result.indices.device
    group_of_row = groups[result.indices // patches]
    count = int(groups.max()) + 1
    first_half = torch.zeros(count, dtype=torch.bool)
    first_half[torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 2]] = True
    half_of_row = first_half.to(device)[group_of_row]
    top = max(1, math.ceil(RANKED_SHARE * patches))
    smallest = result.radii.square()
    by_half = []
    for image in images.tolist():
        places = scores[image].flatten().topk(top).indices.to(device)
        squares = torch.cdist(store.rows(image * patches + places), result.features).square_()
        squares = torch.maximum(squares, smallest).masked_fill_(group_of_row == groups[image], torch.inf)
        each = [squares.masked_fill(rows, torch.inf).amin(dim=1).amax() for rows in (half_of_row, ~half_of_row)]
        by_half.append(torch.stack(each))
    pairs = torch.stack(by_half).double().cpu()
    one, other = pairs[pairs.isfinite().all(dim=1)].numpy().T
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:  # noqa: PLR2004
        return None
    return float(spearmanr(one, other).statistic)


def same_place_share(store: FeatureStore) -> tuple[float | None, float]:
    """Return how often the most similar patch of other images lies at about the same place, and how often by chance.

    Evenly spread patches of evenly spread images are compared. The first share is ``None`` for a single image, and for
    grids of less than three patches.
    """
    images, height, width, _ = store.shape
    patches = height * width
    rows, columns = torch.arange(height), torch.arange(width)
    near_rows = ((rows[:, None] - rows[None]).abs() <= SAME_PLACE).float()
    near_columns = ((columns[:, None] - columns[None]).abs() <= SAME_PLACE).float()
    chance = float(near_rows.mean() * near_columns.mean())
    if images < 2 or patches < 3:  # noqa: PLR2004
        return None, chance
    device = store.device
    chosen = torch.linspace(0, images - 1, min(images, ALIGNMENT_IMAGES), device=device).round().long()
    places = torch.linspace(0, patches - 1, min(patches, ALIGNMENT_PLACES + 2), device=device).round().long()[1:-1]
    queries = store.rows((chosen[:, None] * patches + places).flatten())
    least = torch.full((len(queries),), torch.inf, device=device)
    nearest = torch.zeros(len(queries), dtype=torch.long, device=device)
    image_of = torch.arange(len(chosen), device=device).repeat_interleave(len(places))
    for number, image in enumerate(chosen.tolist()):  # one image at a time: large ones need much memory
        others = store.rows(image * patches + torch.arange(patches, device=device))
        values, found = torch.cdist(queries, others).min(dim=1)
        nearer = (values < least) & (image_of != number)
        least, nearest = torch.where(nearer, values, least), torch.where(nearer, found, nearest)
    place = places.repeat(len(chosen))
    apart = torch.maximum((nearest // width - place // width).abs(), (nearest % width - place % width).abs())
    return float((apart <= SAME_PLACE).float().mean()), chance


def radii_share(bank: torch.Tensor, radii: torch.Tensor, groups: torch.Tensor) -> float:
    """Return the share of patches whose support radius is larger than the distance to the nearest other patch.

    Args:
        bank: Patches of the memory bank, shape ``(m, channels)``, of which evenly spread ones are checked.
        radii: Their support radii, shape ``(m,)``.
        groups: Group of copies that each of them comes from, shape ``(m,)``. Patches of the same group do not count.
    """
    if not radii.any():
        return 0.0
    rows = torch.linspace(0, len(bank) - 1, min(len(bank), RADII_ROWS), device=bank.device).round().long()
    larger = []
    for part in rows.split(256):
        distances = torch.cdist(bank[part], bank)
        distances.masked_fill_(groups[part][:, None] == groups, torch.inf)
        larger.append(radii[part] > distances.amin(dim=1))
    return float(torch.cat(larger).float().mean())


def self_check(facts: FitFacts, threshold: float, asked: float | None, scale: float | None = None) -> SelfCheck:
    """Judge a fit.

    Args:
        facts: Facts about the fit.
        threshold: Threshold of the image score.
        asked: Requested share of false alarms, above 0 and below 1; ``None`` if the threshold does not come from such a
            share but, for example, from labels.
        scale: Height and width of the images divided by what the model sees, the larger ratio; ``None`` if not known.
    """
    images = len(facts.scores)
    above = sum(score > threshold for score in facts.scores)
    interval = None
    if images and math.isfinite(threshold):
        expected = above if asked is None else asked * images
        # The images above may all be defects, or all be good
        interval = rate_interval(min(expected, above), images)[0], rate_interval(max(expected, above), images)[1]
    # More than twice the share and chance explain; without a requested share, no number is expected
    second = asked is not None and bool(binom.sf(above - 1, images, min(FACTOR * asked, 1.0)) < LEVEL)
    verdict, reason, advice = _judge(images, above, asked, second)
    return SelfCheck(verdict, reason, advice, facts, threshold, asked, above, interval, second, scale)


def _judge(images: int, above: int, asked: float | None, second_group: bool) -> tuple[Verdict, str, str]:
    """Return verdict, reason and advice, given the number of scored images and of those above the threshold."""
    if not images:
        return REFUSE, "no image could be scored as if it were new, since there is no other image", "Add good images."
    if asked is None:
        return (
            TRUST,
            "the threshold was given, or comes from labeled images or an expected share of defects",
            "If the labeled images are few, try it on images that were neither trained on nor labeled.",
        )
    few = fewest_images(min(FACTOR * asked, 0.5))
    if images < few:
        return (
            REFUSE,
            f"{counted(images, 'image')} cannot distinguish {_percent(FACTOR * asked)} % of false alarms from none, "
            f"which takes {few}",
            "Add good images and train again, or set the threshold with labeled images.",
        )
    if second_group:
        return (
            LOOK,
            f"{above} of {images} images are above the threshold, where {_percent(asked)} % of good ones should be: "
            "defects, or a rare variant of good images",
            "Look at the first images of the report, set the defects aside and train again. If the images are good, "
            "expect as many false alarms.",
        )
    return TRUST, f"{images} images are enough, and no more of them stand apart than expected", TRUST_ADVICE


def _percent(share: float) -> str:
    """Return a share in percent, with one decimal place if it is below 1 %."""
    percent = 100 * share
    return f"{percent:.0f}" if percent >= 1 or round(percent, 1) == 0 else f"{percent:.1f}"
