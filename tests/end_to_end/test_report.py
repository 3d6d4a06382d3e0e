# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The noise report after a fit, and in a real browser."""

import re
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
from anomalib_softpatch.models import SoftPatch, SoftPatchPlus
from anomalib_softpatch.report.command import report

REPORT = "import sys; from anomalib_softpatch.cli import main; sys.exit(main())"
FILES = {"images.csv", "skipped.csv", "report.html", "most_suspicious.png", "least_suspicious.png"}
SMALL = {"backbone": "resnet18", "layers": ["layer2"], "pre_trained": False, "coreset_sampling_ratio": 0.05}


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
    # two images with a black square among grey noise
    assert table["label"].tolist()[:2] == ["anomalous"] * 2
    # the square lies at rows 16 to 39 and columns 24 to 47
    assert table["highest_patch_x"][:2].between(16, 56).all()
    assert table["highest_patch_y"][:2].between(8, 48).all()
    logged = {name: value.item() for name, value in engine.trainer.callback_metrics.items()}
    assert logged["noise_image_AUROC"] == logged["noise_image_precision"] == 1
    assert logged["noise_patch_AUROC"] > 0.9
    assert {"noise_patch_AUPRO", "noise_patch_precision"} <= logged.keys()


def test_paths_belong_to_their_scores_although_training_shuffles(mvtec_root: Path, tmp_path: Path) -> None:
    """The command, which reads the files in order, gives every image the score that the fit gave it."""
    shutil.copytree(mvtec_root / "bottle" / "train" / "good", tmp_path / "images")
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    save_for_hf(timm.create_model("resnet18", pretrained=False), tmp_path / "weights")
    backbone = f"local-dir:{tmp_path / 'weights'}"
    engine = fit(mvtec_root, tmp_path, SoftPatch(**(SMALL | {"backbone": backbone, "pre_trained": True})), ratio=None)
    report(tmp_path / "images", tmp_path / "out", backbone, ["layer2"], ["lof"])
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


def test_stock_command_leaves_a_report(
    mvtec_root: Path, tmp_path: Path, run_anomalib: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run_anomalib(
        "fit", "--model", "SoftPatch", "--model.backbone=resnet18", "--model.layers=[layer2]",
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

    monkeypatch.setattr(fit_report_module, "find", fail)
    model = SoftPatch(**SMALL)
    engine = fit(mvtec_root, tmp_path, model)
    assert len(model.model.memory_bank)
    assert list(Path(engine.trainer.default_root_dir).rglob("*.ckpt"))
    assert "noise report could not be written: OSError: [Errno 28] No space left on device" in caplog.text


def test_no_report_where_nothing_is_scored(mvtec_root: Path, tmp_path: Path) -> None:
    engine = fit(mvtec_root, tmp_path, SoftPatch(**SMALL, threshold=0, soft_weight=False))
    assert not folder_of(engine).exists()


def test_command_in_a_process_of_its_own_and_the_page_in_a_browser(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium in the PATH to open the report with")
    import timm
    from timm.models import save_for_hf

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(30):
        pixels = rng.integers(100, 156, (64, 64, 3), dtype=np.uint8)
        pixels[16:40, 24:48] *= index != 17
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index:03}.png")
    torch.manual_seed(0)
    save_for_hf(timm.create_model("resnet18", pretrained=False), tmp_path / "weights")
    run_python(
        "-c", REPORT, "report", tmp_path / "images", "--backbone", f"local-dir:{tmp_path / 'weights'}",
        "--layers=[layer2]", "--output", tmp_path / "out", cwd=tmp_path,
    )  # fmt: skip
    page = (tmp_path / "out" / "report.html").as_uri()

    def run_browser(*arguments: str) -> str:
        options = (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
            "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1280,2000", "--virtual-time-budget=5000",
        )  # fmt: skip
        command = [browser, *options, *arguments, page]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    document = run_browser("--dump-dom")
    # the table has been made by its script, with its headings to sort by, its search field and its rows
    assert 'class="dt-search"' in document
    assert document.count("dt-orderable-asc") >= 7
    assert "Showing 1 to 25 of 30 entries" in document
    first_row = re.search(r"<tbody><tr.*?</tr>", document, flags=re.DOTALL).group()
    assert str(tmp_path / "images" / "017.png") in first_row
    run_browser(f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels.min(axis=2) > 250).mean() > 0.3  # a light page
    assert ((pixels[..., 2] - pixels[..., 0]) > 80).mean() > 0.01  # with the blue of the heat maps and the histogram
