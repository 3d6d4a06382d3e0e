# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise report after a fit, and its page in a real browser."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from PIL import Image

import anomalib_softpatch.report.fit_report as fit_report_module
from anomalib_softpatch.data import NoisyDataModule
from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.images.decisions import read_decisions
from anomalib_softpatch.models import SoftPatch, SoftPatchPlus
from anomalib_softpatch.report.command import report
from anomalib_softpatch.report.decisions import apply
from anomalib_softpatch.report.findings import Findings, NearestPatch
from anomalib_softpatch.report.geometry import Region
from anomalib_softpatch.report.writer import write_report
from browser import drive, layout
from conftest import COMMAND
from samples import save_random_weights

FILES = {"images.csv", "skipped.csv", "summary.json", "report.html", "thumbnails"}
SMALL = {"backbone": "test_resnet", "layers": ["layer2"], "pre_trained": False, "coreset_sampling_ratio": 0.05}


def fit(root: Path, results: Path, model: SoftPatch | SoftPatchPlus, ratio: float | None = 0.3) -> Engine:
    datamodule = MVTecAD(root=root, category="bottle", num_workers=0, train_batch_size=4)
    if ratio is not None:
        datamodule = NoisyDataModule(datamodule, noise_ratio=ratio, overlap=True)
    engine = Engine(default_root_dir=results, accelerator="cpu", logger=False)
    engine.fit(model, datamodule=datamodule)
    return engine


def folder_of(engine: Engine) -> Path:
    return Path(engine.trainer.default_root_dir) / "noise_report"


@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
def test_fit_leaves_a_report_that_finds_the_injected_images(
    mvtec_root: Path, tmp_path: Path, model_class: type
) -> None:
    torch.manual_seed(0)
    engine = fit(mvtec_root, tmp_path, model_class(**SMALL))
    assert {file.name for file in folder_of(engine).iterdir()} == FILES
    table = pd.read_csv(folder_of(engine) / "images.csv")
    truth = engine.trainer.datamodule.truth["true_label_index"]
    assert len(table) == len(truth) == 10
    assert [label == "anomalous" for label in table["label"]] == [bool(truth[path]) for path in table["path"]]
    # two images with a black square, among images of gray noise
    assert table["label"].tolist()[:2] == ["anomalous"] * 2
    # the square covers rows 16 to 39 and columns 24 to 47
    assert table["highest_patch_x"][:2].between(16, 56).all()
    assert table["highest_patch_y"][:2].between(8, 48).all()
    logged = {name: value.item() for name, value in engine.trainer.callback_metrics.items()}
    assert logged["noise_image_AUROC"] == logged["noise_image_precision"] == 1
    assert (logged["noise_images_to_find_50"], logged["noise_images_to_find_100"]) == (1, 2)  # of two injected ones
    assert logged["noise_patch_AUROC"] > 0.9
    assert {"noise_image_AP", "noise_patch_AUPRO", "noise_patch_precision"} <= logged.keys()


def test_paths_belong_to_their_scores_although_training_shuffles(mvtec_root: Path, tmp_path: Path) -> None:
    """The command reads the files in order, and gives every image the same score as the fit."""
    shutil.copytree(mvtec_root / "bottle" / "train" / "good", tmp_path / "images")
    backbone = save_random_weights(tmp_path / "weights")
    engine = fit(mvtec_root, tmp_path, SoftPatch(**(SMALL | {"backbone": backbone, "pre_trained": True})), ratio=None)
    extraction = Extraction(backbone, ["layer2"])
    report(tmp_path / "images", tmp_path / "out", extraction, discriminators=["lof"], neighborhood=0)
    fitted, looked = (
        pd.read_csv(folder / "images.csv").assign(name=lambda table: [Path(path).name for path in table["path"]])
        for folder in (folder_of(engine), tmp_path / "out")
    )
    columns = ["image_score", "highest_patch_x", "highest_patch_y"]
    fitted, looked = (table.set_index("name").sort_index()[columns] for table in (fitted, looked))
    np.testing.assert_allclose(fitted, looked, rtol=1e-3)
    assert fitted["image_score"].nunique() == len(fitted)


def test_report_can_be_switched_off(mvtec_root: Path, tmp_path: Path) -> None:
    assert not folder_of(fit(mvtec_root, tmp_path, SoftPatch(**SMALL, noise_report=False))).exists()


def test_stock_command_writes_a_report(
    mvtec_root: Path, tmp_path: Path, run_anomalib: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run_anomalib(
        "fit", "--model", "SoftPatch", "--model.backbone=test_resnet", "--model.layers=[layer2]",
        "--model.pre_trained=false", "--data", "MVTecAD", f"--data.root={mvtec_root}", "--data.category=bottle",
        "--data.num_workers=0", "--trainer.accelerator=cpu", f"--default_root_dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    reports = {path.parent.name for path in tmp_path.rglob("report.html")}
    assert reports == {"noise_report"}


def test_failed_report_does_not_lose_the_model(
    mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_report_module, "visible_region", fail)
    model = SoftPatch(**SMALL)
    engine = fit(mvtec_root, tmp_path, model)
    assert len(model.model.memory_bank)
    assert list(Path(engine.trainer.default_root_dir).rglob("*.ckpt"))
    assert "noise report could not be written: OSError: [Errno 28] No space left on device" in caplog.text


def test_no_report_if_nothing_is_scored(mvtec_root: Path, tmp_path: Path) -> None:
    engine = fit(mvtec_root, tmp_path, SoftPatch(**SMALL, threshold=0, soft_weight=False))
    assert not folder_of(engine).exists()


@pytest.fixture(scope="module")
def reported(
    tmp_path_factory: pytest.TempPathFactory, run_forked: Callable[..., subprocess.CompletedProcess[str]]
) -> tuple[Path, Path]:
    """Return thirty images, of which 017 has no square and has a copy, with the command's report of them."""

    folder = tmp_path_factory.mktemp("reported")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(30):
        pixels = rng.integers(100, 156, (64, 64, 3), dtype=np.uint8)
        pixels[16:40, 24:48] *= index != 17
        Image.fromarray(pixels).save(folder / "images" / f"{index:03}.png")
    (folder / "images" / 'copy, "17" #1.png').write_bytes((folder / "images" / "017.png").read_bytes())
    backbone = save_random_weights(folder / "weights")
    run_forked(
        "-c", COMMAND, "report", folder / "images", "--backbone", backbone,
        "--layers=[layer2]", "--output", folder / "out", cwd=folder,
    )  # fmt: skip
    return folder / "images", folder / "out" / "report.html"


TWINS = ["017.png", 'copy, "17" #1.png']


def test_keys_and_buttons_decide_and_undo(reported: tuple[Path, Path], run_browser: Callable[..., str]) -> None:
    states = drive(
        reported[1],
        """
        const states = [];
        press("ArrowRight"); press("d"); states.push([aside(), normal()]);
        states.push([...document.querySelectorAll("figure.current")].map((one) => one.dataset.rank));
        press("ArrowRight"); press("k"); states.push([aside(), normal()]);
        click("#image-2 button[value=set_aside]"); click("#image-1 button[value=normal]");
        states.push([aside(), normal().length]);
        click("#image-2 button[value=defect]"); states.push([aside(), defects()]);
        states.push(document.getElementById("counts").textContent);
        press("u"); press("u"); press("u"); states.push([aside(), normal()]);
        click("#undo"); press("u"); states.push([aside(), normal(), document.getElementById("undo").disabled]);
        result(states);
        """,
        run_browser,
    )
    third = pd.read_csv(reported[1].with_name("images.csv"))["path"].map(lambda path: Path(path).name)[2]
    assert (
        states
        == [
            [TWINS[:1], []],
            ["2"],  # a decision goes on to the next image
            [TWINS[:1], [third]],
            [TWINS[1:], 2],
            [[], TWINS[1:]],
            "0 set aside, 1 defect, 2 normal, 28 undecided",
            [TWINS[:1], [third]],
            [[], [], True],
        ]
    )


def test_slider_marks_by_score_and_filters_show_what_they_say(
    reported: tuple[Path, Path], run_browser: Callable[..., str]
) -> None:
    marked, undone, others, group, decided, named, ordered = drive(
        reported[1],
        """
        const slider = document.getElementById("slider");
        const choose = (id, value, event = "change") => {
          document.getElementById(id).value = value;
          document.getElementById(id).dispatchEvent(new Event(event));
        };
        choose("slider", (Number(document.getElementById("image-2").dataset.score)
                          + Number(document.getElementById("image-3").dataset.score)) / 2, "input");
        const text = document.getElementById("mark").textContent;
        click("#mark");
        const marked = [aside(), text, document.querySelectorAll("figure.above").length];
        press("u");
        const undone = aside();
        click("#image-1 button[value=defect]"); click("#mark");
        const others = [aside(), defects()];
        press("u"); press("u");
        choose("group", "any");
        const group = visible();
        choose("group", ""); press("d"); choose("decision", "set_aside");
        const decided = visible();
        choose("decision", ""); choose("search", "02", "input");
        const named = visible();
        choose("search", "", "input"); choose("order", "name");
        result([marked, undone, others, group, decided, named, visible()]);
        """,
        run_browser,
    )
    assert marked[0] == TWINS
    assert marked[1].startswith("Set aside the 2 images with a score of")
    assert marked[2] == 2
    assert undone == []
    assert others == [TWINS[1:], TWINS[:1]]  # what is decided already stays as it is
    assert group == TWINS
    assert decided == TWINS[:1]
    assert sorted(named) == ["002.png", *(f"02{digit}.png" for digit in range(10))]
    assert ordered == [*(f"{index:03}.png" for index in range(30)), TWINS[1]]


def test_decisions_of_the_page_are_applied(
    reported: tuple[Path, Path], run_browser: Callable[..., str], tmp_path: Path
) -> None:
    saved = drive(
        reported[1],
        """
        press("ArrowRight"); press("d"); press("x"); press("k");
        URL.createObjectURL = (blob) => { blob.text().then(result); return "#"; };
        click("#download");
        """,
        run_browser,
    )
    (tmp_path / "decisions.csv").write_text(saved, encoding="utf-8")
    decisions = read_decisions(tmp_path / "decisions.csv")
    assert [each.verdict for each in decisions] == ["set_aside", "defect", "normal", *28 * [""]]
    assert {each.path for each in decisions} == set(reported[0].iterdir())
    apply(tmp_path / "decisions.csv", copy_rest=tmp_path / "rest", dry_run=False)
    images = {path.name for path in reported[0].iterdir()}
    assert {path.name for path in (tmp_path / "rest").iterdir()} == images - set(TWINS)


def test_image_is_shown_larger_from_its_own_file(reported: tuple[Path, Path], run_browser: Callable[..., str]) -> None:
    opened, size, title, moved, closed = drive(
        reported[1],
        """
        const viewer = document.getElementById("viewer");
        click("#image-2 a.larger");
        const image = viewer.querySelector(".original");
        image.decode().then(() => {
          const title = () => viewer.querySelector(".title").textContent;
          const first = [viewer.open, [image.naturalWidth, image.naturalHeight], title()];
          press("ArrowRight");
          const moved = title();
          press("d");
          click("#viewer .close");
          result([...first, moved, [viewer.open, ...aside()]]);
        });
        """,
        run_browser,
    )
    assert (opened, size, title) == (True, [64, 64], TWINS[1])
    assert moved not in TWINS
    assert closed == [False, moved]


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Write a page of ten images, of which the first four show the same odd thing and one of these is a copy."""
    (tmp_path / "images").mkdir()
    paths = []
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        paths.append(str(tmp_path / "images" / f"{number}.png"))
    findings = Findings(
        paths=paths,
        scores=torch.linspace(1, 0, 10)[:, None, None] * torch.ones(10, 4, 4),
        kept=torch.ones(10, 4, 4, dtype=torch.bool),
        regions=[Region(0, 0, 64, 64)] * 10,
        groups=torch.tensor([0, 1, 2, 2, 3, 4, 5, 6, 7, 8]),
        nearest={0: [NearestPatch(number, 1, 1, 1.0) for number in (7, 8, 9)]},
        look_alikes=torch.tensor([0, 0, 0, 0, -1, 1, 1, -1, -1, -1]),
    )
    return write_report(findings, tmp_path / "report")


def test_one_decision_for_all_that_show_the_same(alike: Path, run_browser: Callable[..., str]) -> None:
    states = drive(
        alike,
        """
        const states = [];
        const all = (rank) => document.querySelector(`#image-${rank} button.all`);
        states.push([all(1).textContent, all(1).disabled, all(5)]);
        all(1).click(); states.push(defects());
        click("#image-3 button[value=normal]"); click("#image-1 button[value=defect]");
        all(1).click(); states.push([defects(), normal()]);
        press("u"); states.push([defects(), normal()]);
        press("u"); press("u");
        click("#image-6 button[value=set_aside]"); press("s"); states.push(aside());
        click("#image-2 .chip[data-alike]"); states.push([visible(), document.getElementById("alike").value]);
        document.getElementById("alike").value = "any";
        document.getElementById("alike").dispatchEvent(new Event("change")); states.push(visible().length);
        result(states);
        """,
        run_browser,
    )
    files = [f"{number}.png" for number in range(10)]
    assert (
        states
        == [
            ["The same for all 4", True, None],
            [],
            [[files[0], files[1], files[3]], [files[2]]],  # what is decided already stays as it is
            [[files[0]], [files[2]]],  # one step
            files[5:7],
            [files[:4], "1"],
            6,
        ]
    )


def test_a_click_explains_why_an_image_is_odd(alike: Path, run_browser: Callable[..., str]) -> None:
    """The click does nothing else."""
    before, after, chosen, sizes = drive(
        alike,
        """
        const details = [...document.querySelectorAll("details")];
        const before = details.map((one) => [one.querySelector("summary").textContent, one.open]);
        details[0].querySelector("summary").click();
        const images = details.map((one) => one.querySelector("img"));
        for (const one of details) one.open = true;
        Promise.all(images.map((one) => { one.loading = "eager"; return one.decode(); })).then(() => result([
          before, details[0].open, document.querySelectorAll("figure.current").length,
          images.map((one) => [one.naturalWidth, one.naturalHeight])]));
        """,
        run_browser,
    )
    assert before == [["Why it looks odd", False], *2 * [["Difference from a copy", False]]]
    assert after
    assert chosen == 0
    assert sizes == [[4 * 112 + 3 * 8, 112], [2 * 224 + 8, 224], [2 * 224 + 8, 224]]


@pytest.mark.parametrize("width", [1280, 400])
def test_a_page_with_all_that_can_be_opened_fits_its_window(
    alike: Path, run_browser: Callable[..., str], width: int
) -> None:
    opened = alike.with_name("opened.html")
    opened.write_text(alike.read_text(encoding="utf-8").replace("<details>", "<details open>"), encoding="utf-8")
    assert layout(opened, width, run_browser) == [width, width, 10, True]


@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_its_window(reported: tuple[Path, Path], run_browser: Callable[..., str], width: int) -> None:
    assert layout(reported[1], width, run_browser) == [width, width, 31, True]


def test_without_scripts_the_page_shows_the_images(
    reported: tuple[Path, Path], run_browser: Callable[..., str], tmp_path: Path
) -> None:
    page = reported[1].with_name("without.html")
    text = reported[1].read_text(encoding="utf-8")
    page.write_text(
        text.replace("<head>", '<head><meta http-equiv="Content-Security-Policy" content="script-src \'none\'">')
    )
    run_browser(page, f"--screenshot={tmp_path / 'page.png'}", height=2400)
    page.unlink()
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels.min(axis=2) > 250).mean() > 0.3  # a light page
    assert ((pixels[1000:, :, 2] - pixels[1000:, :, 0]) > 80).mean() > 0.01  # with the blue of the heat maps


def test_thousands_of_images_in_the_browser(run_browser: Callable[..., str], tmp_path: Path) -> None:
    count = 5000
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "gray").save(tmp_path / "images" / "0.png")
    paths = [str(tmp_path / "images" / f"{index}.png") for index in range(count)]
    for path in paths[1:]:
        os.link(paths[0], path)
    findings = Findings(
        paths=paths,
        scores=torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(0)),
        kept=torch.ones(count, 4, 4, dtype=torch.bool),
        regions=[Region(0, 0, 32, 32)] * count,
    )
    page = write_report(findings, tmp_path / "report")
    script = """
        press("ArrowRight"); press("d");
        const slider = document.getElementById("slider");
        slider.value = 0; slider.dispatchEvent(new Event("input")); click("#mark");
        const all = aside().length;
        press("u");
        const lazy = [...document.querySelectorAll("figure img")].every((image) => image.loading === "lazy");
        const options = {contentVisibilityAuto: true};
        const laid_out = [...document.querySelectorAll("figure > a")].filter((one) => one.checkVisibility(options));
        result([all, aside().length, lazy, laid_out.length]);
    """
    everything, left, lazy, laid_out = drive(page, script, run_browser)
    assert (everything, left) == (count, 1)
    # The browser chooses how many images it has loaded by now (700 to all), but not how many it lays out.
    assert lazy
    assert 4 <= laid_out < 200  # four columns, 2,000 pixels high
