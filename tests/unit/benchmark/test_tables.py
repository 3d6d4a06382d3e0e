# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomalib_softpatch.benchmark.tables import read_results, summarize, to_markdown
from anomalib_softpatch.cli import main


def run(model: str, ratio: float, category: str, seed: int, auroc: float, **more: Any) -> dict[str, Any]:
    """Return a row as `anomalib benchmark` writes it."""
    return {
        "accelerator": "cpu",
        "job_duration": 11.0,
        "fit_duration": 8.0,
        "test_duration": 2.0,
        "model.class_path": model,
        "model.init_args.coreset_sampling_ratio": 0.01,
        "data.class_path": "NoisyDataModule",
        "data.init_args.noise_ratio": ratio,
        "data.init_args.overlap": True,
        "data.init_args.datamodule.class_path": "anomalib.data.MVTecAD",
        "data.init_args.datamodule.init_args.category": category,
        "seed": seed,
        "image_AUROC": auroc,
        "image_F1Score": 0.9,
        "pixel_AUROC": auroc - 0.1,
        "pixel_F1Score": 0.5,
        "pixel_AUPRO": 0.6,
        **more,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two models, two ratios, two categories, three seeds; AUROC = 0.9 - ratio + 0.01 * seed +- 0.05 per category."""
    rows = [
        run(model, ratio, category, seed, 0.9 - ratio * factor + 0.01 * seed + offset)
        for (model, factor), ratio, (category, offset), seed in product(
            [("Patchcore", 1.0), ("SoftPatch", 0.25)],
            [0, 0.4],
            [("01", -0.05), ("02", 0.05)],
            range(3),
        )
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    return tmp_path / "results.csv"


def test_headings_have_the_true_share_of_noise(tmp_path: Path) -> None:
    rows = [run("SoftPatch", 0.4, "01", seed, 0.9, noise_share=share) for seed, share in enumerate((0.285, 0.2857))]
    rows += [run("SoftPatch", 0.1, "01", seed, 0.9, noise_share=1 / 11) for seed in range(2)]
    rows += [run("SoftPatch", 0, "01", 0, 0.9, noise_share=0)]
    runs = read_results([write(tmp_path / "results.csv", *rows)])
    assert [line for line in to_markdown(summarize(runs), runs).splitlines() if line.startswith("###")] == [
        "### MVTecAD, 0 % noise, overlap",
        "### MVTecAD, 10 % noise (9.1 % of the training images), overlap",
        "### MVTecAD, 40 % noise (28.5 to 28.6 % of the training images), overlap",
    ]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_means_are_over_categories_and_deviations_over_seeds(results: Path) -> None:
    summary = summarize(read_results([results]))
    assert [model for *_, model in summary.index] == ["Patchcore", "SoftPatch"] * 2
    row = summary.loc[("MVTecAD", "overlap", 0.4, "SoftPatch")]
    assert row["image_AUROC", "mean"] == pytest.approx(100 * (0.9 - 0.1 + 0.01))
    assert row["image_AUROC", "std"] == pytest.approx(1.0)  # of 0, 1 and 2 points; the categories differ by ten
    assert row["fit_duration", "mean"] == 8.0


@pytest.mark.parametrize(("seeds", "models"), [([0, 1, 2], 2), ([0, 1, 1], 3)])
def test_the_seed_of_a_run_does_not_distinguish_models(tmp_path: Path, seeds: list[int], models: int) -> None:
    """That holds for a model that gets the run's seed as an option; a different seed does distinguish models."""
    rows = [run("Patchcore", 0.1, "01", seed, 0.9) for seed in range(3)]
    rows += [run("SoftPatch", 0.1, "01", seed, 0.9, **{"model.init_args.seed": own}) for seed, own in enumerate(seeds)]
    runs = read_results([write(tmp_path / "results.csv", *rows)])
    assert runs["model"].nunique() == models


def test_the_table_has_every_measure_in_its_unit(results: Path) -> None:
    runs = read_results([results])
    text = to_markdown(summarize(runs), runs)
    tables = text.split("### ")[1:]
    assert [table.splitlines()[0] for table in tables] == [
        "MVTecAD, 0 % noise, overlap",
        "MVTecAD, 40 % noise, overlap",
    ]
    assert "mean of 2 categories; mean ± standard deviation over 3 seeds." in tables[1]
    measures = ["Image AUROC [%]", "Pixel AUROC [%]", "Pixel AUPRO [%]", "Image F1 [%]", "Pixel F1 [%]"]
    assert f"| {' | '.join(['Model', *measures, 'Fit [s]', 'Test [s]'])} |" in tables[1]
    assert (
        "| SoftPatch | 81.0 ± 1.0 | 71.0 ± 1.0 | 60.0 ± 0.0 | 90.0 ± 0.0 | 50.0 ± 0.0 | 8.0 ± 0.0 | 2.0 ± 0.0 |"
    ) in tables[1]


def test_missing_runs_are_mentioned(tmp_path: Path) -> None:
    rows = [run("Patchcore", 0.1, "nut", seed, 0.8) for seed in range(3)]
    path = write(tmp_path / "results.csv", *rows, run("SoftPatch", 0.1, "nut", 0, 0.9))
    runs = read_results([path])
    text = to_markdown(summarize(runs), runs)
    assert "SoftPatch: only 1 of 3 runs exist." in text
    assert "| SoftPatch | 90.0 |" in text  # one seed has no deviation
    assert "Patchcore: only" not in text


def test_datasets_and_protocols_have_separate_tables(tmp_path: Path) -> None:
    visa = {"data.init_args.datamodule.class_path": "Visa"}
    path = write(
        tmp_path / "results.csv",
        run("SoftPatch", 0.1, "nut", 0, 0.8),
        run("SoftPatch", 0.1, "nut", 0, 0.7, **{"data.init_args.overlap": False}),
        run("SoftPatch", 0.1, "pcb1", 0, 0.6, **visa),
    )
    runs = read_results([path])
    text = to_markdown(summarize(runs), runs)
    headings = [line for line in text.splitlines() if line.startswith("###")]
    assert sorted(headings) == [
        "### MVTecAD, 10 % noise, no overlap",
        "### MVTecAD, 10 % noise, overlap",
        "### Visa, 10 % noise, overlap",
    ]
    assert "pcb1; one seed." in text


def test_options_that_differ_name_the_variants_of_a_model(tmp_path: Path) -> None:
    rows = [
        run("Patchcore", 0.1, "nut", 0, 0.7),
        run("SoftPatch", 0.1, "nut", 0, 0.8, **{"model.init_args.discriminator": "lof"}),
        run("SoftPatch", 0.1, "nut", 0, 0.9, **{"model.init_args.discriminator": "nearest"}),
    ]
    models = read_results([write(tmp_path / "results.csv", *rows)])["model"]
    assert list(models) == ["Patchcore", "SoftPatch (discriminator=lof)", "SoftPatch (discriminator=nearest)"]


def test_a_benchmark_without_noise(tmp_path: Path) -> None:
    rows = [run("Patchcore", 0.1, "", seed, 0.7) for seed in range(2)]
    plain = [{key: value for key, value in row.items() if not key.startswith("data.")} for row in rows]
    folder = {"data.class_path": "Folder", "data.init_args.name": "nuts"}
    runs = read_results([write(tmp_path / "results.csv", *({**row, **folder} for row in plain))])
    assert list(runs["noise_ratio"]) == [0, 0]
    text = to_markdown(summarize(runs), runs)
    assert text.startswith("### Folder, 0 % noise\n\nnuts; mean ± standard deviation over 2 seeds.")


def test_a_set_without_masks_has_no_pixel_measures(tmp_path: Path) -> None:
    row = run("SoftPatch", 0.1, "nut", 0, 0.8)
    path = write(tmp_path / "a" / "results.csv", {key: row[key] for key in row if not key.startswith("pixel")})
    main(["compare", str(path)])
    assert (
        "| Model | Image AUROC [%] | Image F1 [%] | Fit [s] | Test [s] |" in (path.parent / "comparison.md").read_text()
    )
    masked = write(tmp_path / "b" / "results.csv", {**row, "pixel_AUROC": None, "pixel_AUPRO": None})
    main(["compare", str(masked)])
    assert "| SoftPatch | 80.0 | n/a | n/a | 90.0 |" in (masked.parent / "comparison.md").read_text()
    assert Image.open(masked.parent / "comparison.png").width < 900  # one panel


def test_the_last_of_repeated_runs_counts(tmp_path: Path) -> None:
    first = run("SoftPatch", 0.1, "nut", 0, 0.5)
    write(tmp_path / "runs" / "2026-01-01" / "results.csv", first, run("SoftPatch", 0.1, "nut", 1, 0.6))
    write(tmp_path / "runs" / "2026-01-02" / "results.csv", run("SoftPatch", 0.1, "nut", 0, 0.8))
    main(["compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    assert "| SoftPatch | 70.0 ± 14.1 |" in (tmp_path / "out" / "comparison.md").read_text()


def test_the_command_writes_table_and_image(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(results)])
    text = (results.parent / "comparison.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert sorted(path.name for path in results.parent.iterdir()) == ["comparison.md", "comparison.png", "results.csv"]
    pixels = np.asarray(Image.open(results.parent / "comparison.png").convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 400
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()  # light background
    colors = {tuple(color) for color in pixels.reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # a line for each model


def test_a_dark_style_does_not_darken_the_image(results: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"figure.facecolor": "black", "axes.facecolor": "black"}):
        main(["compare", str(results)])
    assert np.asarray(Image.open(results.parent / "comparison.png").convert("L")).mean() > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file"),
        ("", "cannot be read as a CSV file"),
        ("a,b\n1,2\n", "lacks the columns ['model.class_path', 'data.class_path', 'seed', 'image_AUROC']"),
        ("model.class_path,data.class_path,seed,image_AUROC\n", "has no runs"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "some.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as error:
        main(["compare", str(path)])
    assert error.value.code == 2
    output = capsys.readouterr().err
    assert message in output
    assert f"results={str(path)!r}" in output


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err
