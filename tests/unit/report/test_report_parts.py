# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise report's parts: scores, geometry, quality, findings and files."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.pre_processing import PreProcessor
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Pad, Resize

from anomalib_softpatch.components import keep_mask
from anomalib_softpatch.images.reading import read_part
from anomalib_softpatch.pages.drawing import GAP, TILE
from anomalib_softpatch.report import writer
from anomalib_softpatch.report.drawing import PART, image_pair, nearest_patches
from anomalib_softpatch.report.findings import Findings, NearestPatch
from anomalib_softpatch.report.geometry import Region, true_patches, visible_region
from anomalib_softpatch.report.image_scores import image_scores, peaks
from anomalib_softpatch.report.look_alikes import with_look_alikes
from anomalib_softpatch.report.noise_level import NoiseLevel, noise_level
from anomalib_softpatch.report.page import self_check_block, with_self_check
from anomalib_softpatch.report.quality import detection_quality, images_to_inspect, inspection_curve
from anomalib_softpatch.report.writer import write_report

BAD = 3
FILES = {"images.csv", "skipped.csv", "summary.json", "report.html", "thumbnails"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def make_findings(folder: Path, count: int = 12, size: tuple[int, int] = (96, 64), **kwargs: object) -> Findings:
    """Gray images; number `BAD` has a black square where its patch scores are highest: row 1, column 2 of 4 x 6."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(count, 4, 6, generator=generator)
    scores[BAD, 1, 2] = 5.0
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        pixels = np.full((size[1], size[0], 3), 160, dtype=np.uint8)
        if index == BAD:
            pixels[16:32, 32:48] = 0
        path = folder / f"{index:03}.png"
        Image.fromarray(pixels).save(path)
        paths.append(str(path))
    defaults = {
        "kept": keep_mask(scores, 0.15),
        "regions": [Region(0, 0, *size)] * count,
    }
    return Findings(paths=paths, scores=scores, **(defaults | kwargs))


# Scores


def test_image_score_is_the_mean_of_the_highest_patches() -> None:
    scores = torch.arange(200.0).view(2, 10, 10)
    assert image_scores(scores, share=0.03).tolist() == [98.0, 198.0]
    assert image_scores(scores).tolist() == [99.0, 199.0]  # 1 %
    assert image_scores(scores, share=0.001).tolist() == [99.0, 199.0]  # one patch at least


def test_removed_shares() -> None:
    kept = torch.tensor([[[True, True], [True, True]], [[False, True], [False, False]]])
    findings = Findings(["a", "b"], torch.zeros(2, 2, 2), kept, [Region(0, 0, 2, 2)] * 2)
    assert findings.table["removed_share"].tolist() == [0.0, 0.75]


def test_peaks_are_found_where_they_are() -> None:
    scores = torch.zeros(2, 3, 5)
    scores[0, 2, 4] = 7
    scores[1, 0, 3] = 8
    assert [part.tolist() for part in peaks(scores)] == [[7, 8], [2, 0], [4, 3]]


# Geometry


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        (None, (100, 50), (0, 0, 100, 50)),
        (Resize((256, 256)), (100, 50), (0, 0, 100, 50)),
        (Compose([Resize((256, 256)), CenterCrop((224, 224)), Normalize([0.5] * 3, [0.5] * 3)]), (512, 1024),
         (32, 64, 480, 960)),
        (CenterCrop((32, 64)), (128, 128), (32, 48, 96, 80)),
        (Pad(10), (40, 20), (-10, -10, 50, 30)),
    ],
)  # fmt: skip
def test_visible_region(transform: object, size: tuple[int, int], expected: tuple[int, ...]) -> None:
    region = visible_region(transform, size)
    assert (region.left, region.top, region.right, region.bottom) == pytest.approx(expected, abs=0.6)


def test_visible_region_is_where_the_transform_looks() -> None:
    """A mark in the image appears in the patch whose center, in pixels of the image, is at the mark."""
    transform = PreProcessor(transform=Compose([Resize((64, 64)), CenterCrop((48, 48))])).transform
    image = torch.zeros(3, 300, 200)
    image[:, 200:212, 60:68] = 1
    grid = torch.nn.functional.adaptive_avg_pool2d(transform(image[None]), (12, 12))[0, 0]
    row, column = divmod(int(grid.argmax()), 12)
    x, y = visible_region(transform, (200, 300)).patch_center(row, column, (12, 12))
    assert abs(x - 64) < 10
    assert abs(y - 206) < 14


def test_true_patches_take_part_of_a_patch_and_a_crop_into_account() -> None:
    mask = torch.zeros(80, 80, dtype=torch.uint8)
    mask[20:22, 10:30] = 1  # two of ten rows of the patches in row 2
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2, 1:3] = True
    assert torch.equal(true_patches(mask, Region(0, 0, 80, 80), (8, 8)), expected)
    cropped = true_patches(mask, Region(20, 20, 60, 60), (4, 4))
    assert cropped.nonzero().tolist() == [[0, 0]]
    padded = true_patches(mask, Region(-20, 0, 60, 80), (8, 8))
    assert padded.nonzero().tolist() == [[2, 3], [2, 4]]


def test_tiny_anomaly_marks_one_patch() -> None:
    mask = torch.zeros(80, 80)
    mask[33, 51] = 255
    assert true_patches(mask, Region(0, 0, 80, 80), (8, 8)).nonzero().tolist() == [[3, 5]]
    assert not true_patches(mask * 0, Region(0, 0, 80, 80), (8, 8)).any()
    assert not true_patches(None, Region(0, 0, 80, 80), (8, 8)).any()


# Quality and level


def test_quality_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(40, generator=generator) < 0.3
    patches = (torch.rand(40, 5, 5, generator=generator) < 0.3) & labels[:, None, None]
    scores = torch.rand(40, 5, 5, generator=generator) * 9 + 1 + patches.float()
    image = image_scores(scores)
    quality = detection_quality(image, labels, scores, patches)
    assert quality["image_AUROC"] == pytest.approx(roc_auc_score(labels, image))
    assert quality["image_AP"] == pytest.approx(average_precision_score(labels, image))
    assert quality["patch_AUROC"] == pytest.approx(roc_auc_score(patches.flatten(), scores.flatten()), abs=1e-5)
    highest = image.argsort(descending=True)[: int(labels.sum())]
    assert quality["image_precision"] == pytest.approx(labels[highest].float().mean().item())
    assert 0 < quality["patch_AUPRO"] < 1
    perfect = detection_quality(labels.float(), labels, patches.float(), patches)
    assert set(perfect.values()) == {1.0}


def test_no_quality_without_both_kinds_of_images_or_without_masks() -> None:
    scores = torch.rand(4, 3, 3)
    for labels in (torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        assert detection_quality(image_scores(scores), labels, scores, None) == {}
    labels = torch.tensor([True, False, False, False])
    assert set(detection_quality(image_scores(scores), labels, scores, None)) == {
        "image_AUROC", "image_AP", "image_precision"
    }  # fmt: skip


def test_inspection_curve_counts_the_images_to_look_at() -> None:
    ordered = torch.tensor([True, False, True, False, False, True, False, True, False, False])
    assert inspection_curve(ordered).tolist() == [0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]
    assert [images_to_inspect(ordered, share) for share in (0.1, 0.5, 0.9, 1.0)] == [1, 3, 8, 8]
    assert images_to_inspect(torch.tensor([False, True]), 1.0) == 2


def test_inspection_of_findings_is_the_first_count_of_enough_recall(tmp_path: Path) -> None:
    """Compared with scikit-learn: the smallest number of highest-scored images with at least that recall."""
    labels = torch.rand(40, generator=torch.Generator().manual_seed(2)) < 0.4
    findings = make_findings(tmp_path, count=40, labels=labels)
    scores = findings.image_scores.numpy()
    for share in (0.5, 0.9, 1.0):
        counts = [
            int((scores >= limit).sum())
            for limit in scores
            if recall_score(labels.numpy(), scores >= limit) >= share - 1e-9
        ]
        assert findings.inspection[share] == min(counts)
    assert make_findings(tmp_path, count=40).inspection == {}
    assert make_findings(tmp_path, count=40, labels=torch.zeros(40, dtype=torch.bool)).inspection == {}


def normal(mean: float, deviation: float, count: int) -> torch.Tensor:
    """Quantiles of a normal distribution."""
    return torch.from_numpy(mean + deviation * norm.ppf((np.arange(count) + 0.5) / count))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_noise_level_counts_the_images_that_stand_apart(share: float) -> None:
    count = round(300 * share)
    scores = torch.cat([normal(0, 1, 300 - count), normal(6, 1.5, count)])[torch.randperm(300)]
    level = noise_level(scores)
    assert level.known
    assert level.low <= share <= level.high < 1.3 * share
    assert level.low > 0.7 * share
    assert noise_level(1000 * scores - 7).low == level.low  # on any scale
    median = scores.median()
    deviation = 1.4826 * (scores - median).abs().median()
    assert level.score == pytest.approx((median + 3 * deviation).item(), abs=0.05)


@pytest.mark.parametrize(
    "scores",
    [
        normal(0, 1, 300),
        torch.cat([normal(0, 1, 250), normal(1.5, 1.5, 50)]),  # the two overlap
        torch.cat([normal(0, 1, 9), torch.tensor([3.0])]),
        torch.cat([normal(0, 1, 100), normal(8, 1, 200)]),  # the lower group is not the rest, but a minority
        torch.zeros(10),
        torch.ones(1),
        torch.arange(3),
    ],
)
def test_noise_level_is_unknown_without_a_separate_group(scores: torch.Tensor) -> None:
    level = noise_level(scores)
    assert not level.known
    assert (level.low, level.high, str(level)) == (0, 1, "cannot tell")
    assert level.score >= scores.median()


def test_noise_level_as_text() -> None:
    assert str(NoiseLevel(0.051, 0.12, True, 1.0)) == "5 to 12 %"
    assert str(NoiseLevel(0.101, 0.104, True, 1.0)) == "10 %"


# Findings


def test_table_is_sorted_and_gives_the_peak_in_pixels(tmp_path: Path) -> None:
    labels = torch.zeros(12, dtype=torch.bool)
    labels[BAD] = True
    table = make_findings(tmp_path, labels=labels).table
    assert table["rank"].tolist() == list(range(1, 13))
    assert table["image_score"].is_monotonic_decreasing
    first = table.iloc[0]
    assert Path(first["path"]).name == "003.png"
    assert (first["highest_patch_x"], first["highest_patch_y"]) == (40, 24)  # the center of the black square
    assert (first["highest_patch_score"], first["label"]) == (5.0, "anomalous")
    assert "label" not in make_findings(tmp_path).table


def test_ties_are_in_the_order_of_the_paths() -> None:
    scores = torch.zeros(3, 2, 2)
    findings = Findings(["b", "c", "a"], scores, scores == 0, [Region(0, 0, 1, 1)] * 3)
    assert findings.order == [2, 0, 1]


def test_rarity_is_the_rank_in_decades(tmp_path: Path) -> None:
    scores = torch.arange(10_000.0).view(1, 100, 100)
    findings = Findings([str(tmp_path / "a.png")], scores, scores >= 0, [Region(0, 0, 1, 1)])
    rarity = findings.rarity.flatten()
    assert rarity[0] == 0
    assert rarity[8999].item() == pytest.approx(1, abs=1e-3)
    assert rarity[9899].item() == pytest.approx(2, abs=6e-3)
    assert rarity[-1].item() == pytest.approx(4)


def test_each_group_counts_once() -> None:
    scores = torch.rand(6, 5, 5, generator=torch.Generator().manual_seed(0))
    single = Findings([*"abcdef"], scores, scores < 1, [Region(0, 0, 1, 1)] * 6)
    order = [0, 1, 2, 2, 2, 3, 4, 0, 5]
    groups = torch.tensor(order)
    copied = Findings([*"abcdefghi"], scores[order], scores[order] < 1, [Region(0, 0, 1, 1)] * 9, groups=groups)
    assert torch.equal(copied.rarity, single.rarity[order])
    numbers = copied.duplicate_groups
    assert sorted(number or 0 for number in numbers) == [0, 0, 0, 0, 1, 1, 2, 2, 2] or sorted(
        number or 0 for number in numbers
    ) == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert numbers[2] == numbers[3] == numbers[4] != numbers[0] == numbers[7]


# Images


def test_hottest_color_lies_on_the_defect(tmp_path: Path) -> None:
    pair = np.asarray(image_pair(make_findings(tmp_path), BAD)).astype(int)
    right = pair[:, -TILE:]  # the image, with white above and below
    redness = right[..., 0] - right[..., 2]
    y, x = np.array(np.unravel_index(redness.argmax(), redness.shape)) * 96 / TILE
    assert 28 <= x < 52
    assert 16 + 12 <= y < 16 + 36


def test_heat_map_is_drawn_where_the_model_looked(tmp_path: Path) -> None:
    region = Region(24, 16, 72, 48)
    pair = np.asarray(image_pair(make_findings(tmp_path, regions=[region] * 12), 0))
    overlaid = pair[37:186, -TILE:]  # the image of 96 x 64 pixels, enlarged to 224 x 149
    untouched = (overlaid == 160).all(axis=2)
    assert untouched[:33].all()
    assert untouched[:, :51].all()
    assert not untouched[42:107, 61:163].any()


# Files


def test_report_has_all_files_and_needs_nothing_else(tmp_path: Path) -> None:
    labels = torch.zeros(12, dtype=torch.bool)
    labels[BAD] = True
    findings = make_findings(
        tmp_path / "<b>&amp", labels=labels, skipped=[("x<i>.png", "empty file")], notes=["A note."]
    )
    page = write_report(findings, tmp_path / "report")
    assert {file.name for file in page.parent.iterdir()} == FILES
    assert len(pd.read_csv(page.parent / "images.csv")) == 12
    assert pd.read_csv(page.parent / "skipped.csv").to_numpy().tolist() == [["x<i>.png", "empty file"]]
    html = page.read_text(encoding="utf-8")
    assert "<b>&amp/003.png" not in html  # escaped
    assert "x&lt;i&gt;.png" in html
    assert "A note." in html
    assert "1 file." in html
    assert not re.search(r"\b1(</b>)?\s*(<a [^>]*>)?(images|files|groups)\b", html)
    assert f"{100 * (~findings.kept).float().mean():.0f}&nbsp;% of the patches of this set" in html
    assert "truth: anomalous" in html
    assert "to find 100 % of the known anomalous images" in html
    images = re.findall(r'<img src="(thumbnails/[^"]*)" loading="lazy"', html)
    assert len(images) == 12
    assert all((page.parent / image).is_file() for image in images)
    links = re.findall(r'data-link="([^"]*)"', html)
    assert {(page.parent / unquote(link)).resolve() for link in links} == {Path(path) for path in findings.paths}
    loaded = re.findall(r"""(?:src|href)=["']?(\w+:[^"'>\s]{0,20}|//[^"'>\s]{0,20})""", html)
    assert all(source.startswith("data:image/png") for source in loaded)


def test_failure_keeps_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = make_findings(tmp_path / "images")
    page = write_report(findings, tmp_path / "report")
    (page.parent / "mine.txt").write_text("the user's")
    before = contents(page.parent)

    def fail(*args: object) -> str:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(writer, "render", fail)
    with pytest.raises(RuntimeError, match="out of ink"):
        write_report(findings, tmp_path / "report")
    assert contents(page.parent) == before
    monkeypatch.undo()
    write_report(findings, tmp_path / "report")
    assert contents(page.parent).keys() == before.keys()


def test_there_is_no_page_while_files_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed then leaves no page next to files of another report."""
    findings = make_findings(tmp_path / "images")
    page = write_report(findings, tmp_path / "report")
    moved = []

    def replace(file: Path, target: Path, replace: Callable = Path.replace) -> Path:
        assert not page.exists()
        moved.append(target.name)
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_report(findings, tmp_path / "report")
    assert moved[-1] == "report.html"
    assert set(moved) - {"earlier"} == FILES


def test_missing_image_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    findings = make_findings(tmp_path / "images")
    Path(findings.paths[BAD]).unlink()
    page = write_report(findings, tmp_path / "report")
    html = page.read_text(encoding="utf-8")
    assert html.count('<img src="thumbnails/') == 11
    assert html.count("The file could not be drawn.") == 1
    assert "003.png is not shown" in caplog.text


def test_report_of_thousands_of_images_shows_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = make_findings(tmp_path / "images", count=20)
    drawn = {}  # each image is drawn once, to save time
    monkeypatch.setattr(
        writer, "image_pair", lambda findings, index: drawn.setdefault(index % 20, image_pair(few, index % 20))
    )
    count = 1000
    findings = Findings(
        paths=[few.paths[index % 20] for index in range(count)],
        scores=torch.rand(count, 4, 6, generator=torch.Generator().manual_seed(0)),
        kept=torch.ones(count, 4, 6, dtype=torch.bool),
        regions=[few.regions[0]] * count,
    )
    page = write_report(findings, tmp_path / "report")
    assert page.stat().st_size < 1.6e6
    assert page.read_text(encoding="utf-8").count('<img src="thumbnails/') == count
    assert len(pd.read_csv(page.parent / "images.csv")) == count


def test_a_later_self_check_replaces_an_earlier_one():
    written = f"<h1>Report</h1>{self_check_block([])}<p>rest</p>"
    once = with_self_check(written, ["Self-check: a < b.", "Second."])
    assert once.count("a &lt; b") == once.count("Second.") == 1
    assert once.startswith("<h1>Report</h1>")
    assert once.endswith("<p>rest</p>")
    twice = with_self_check(once, ["Other."])
    assert "Second." not in twice
    assert with_self_check(twice, []) == written


def test_the_oddest_patch_is_drawn_beside_the_nearest_ones(tmp_path: Path) -> None:
    """The middle of each square is black for the image's own patch and gray for the others."""
    nearest = {BAD: [NearestPatch(0, 1, 2, 1.0), NearestPatch(5, 0, 0, 2.0)]}
    findings = make_findings(tmp_path / "images", nearest=nearest)
    strip = np.asarray(nearest_patches(findings, BAD)).astype(int)
    assert strip.shape == (PART, 3 * PART + 2 * GAP, 3)
    middles = [strip[PART // 2, number * (PART + GAP) + PART // 2, 0] for number in range(3)]
    assert middles[0] < 10
    assert all(abs(middle - 160) < 5 for middle in middles[1:])
    assert strip[: PART // 7, -PART:].max() < 10  # black beyond the corner of the image


def test_a_part_of_an_image_is_a_crop(tmp_path: Path) -> None:
    """Also of a large JPEG file, which is decoded at a smaller size."""
    gradient = np.linspace(0, 255, 1200).round().astype(np.uint8)
    pixels = np.stack(
        [np.tile(gradient, (800, 1)), np.tile(gradient[:800, None], (1, 1200)), np.full((800, 1200), 9)], 2
    )
    for name in ("image.png", "image.jpg"):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name, quality=95)
        part = np.asarray(read_part(tmp_path / name, (600.0, 200.0, 1000.0, 600.0), 50)).astype(int)
        expected = pixels[204:600:8, 604:1000:8].astype(int)
        assert np.abs(part - expected)[1:-1, 1:-1].max() <= 6


def test_look_alikes_are_those_of_the_features(tmp_path: Path) -> None:
    """Two images with the same odd patch at different places, one of which has a copy."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 6, 8, generator=generator) + 0.1 * torch.randn(20, 4, 6, 8, generator=generator)
    odd = 5 * torch.randn(8, generator=generator)
    features[2, 0, 1], features[9, 3, 3], features[12, 2, 2] = odd, odd + 0.05, -odd
    scores = torch.linalg.vector_norm(features - features.mean(dim=0), dim=3)
    groups = torch.tensor([*range(20), 9])  # the last one is a copy of number 9
    findings = make_findings(tmp_path / "images", count=21, groups=groups)
    findings = Findings(**(vars(findings) | {"scores": scores[groups]}))
    seen = with_look_alikes(findings, features, 1)
    assert [number for number, group in enumerate(seen.look_alike_groups) if group == 1] == [2, 9, 20]
    assert set(seen.look_alike_groups) == {1, None}
    assert seen.table["look_alike_group"].notna().sum() == 3
    for image, place in ((2, (0, 1)), (20, (3, 3))):
        others = [(each.image, each.row, each.column) for each in seen.nearest[image]]
        assert len({other for other, _, _ in others}) == 3
        assert all(max(abs(row - place[0]), abs(column - place[1])) <= 1 for _, row, column in others)
        assert image not in {other for other, _, _ in others}
    page = write_report(seen, tmp_path / "report").read_text(encoding="utf-8")
    assert page.count("the same odd thing in 3 images") == 3
    assert page.count("Why it looks odd") == 21
    assert page.count("Difference from a copy") == 2


def test_an_image_is_shown_although_a_nearest_one_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    findings = make_findings(tmp_path / "images", nearest={BAD: [NearestPatch(0, 1, 2, 1.0)]})
    Path(findings.paths[0]).unlink()
    page = write_report(findings, tmp_path / "report").read_text(encoding="utf-8")
    assert page.count("The file could not be drawn.") == 1
    assert "003.png is shown without some of the images" in caplog.text
