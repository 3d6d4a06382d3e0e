# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""`anomalib benchmark` with this package's classes."""

import io
import json
import logging
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from anomalib.pipelines import Benchmark
from anomalib.utils.logging import LoggerRedirectError
from PIL import Image
from rich.console import Console

from anomalib_softpatch.benchmark.generator import NoiseBenchmarkJobGenerator
from anomalib_softpatch.benchmark.pipeline import NoiseBenchmark
from anomalib_softpatch.benchmark.results import ResultTable
from anomalib_softpatch.benchmark.runners import ParallelRunner
from anomalib_softpatch.data import NoisyDataModule
from conftest import ANOMALIB

# Small, to be quick, and because Anomalib's Patchcore takes many gigabytes for larger sets: its selection of a coreset
# allocates tensors of about 10 MB in an order that keeps glibc's allocator from reusing their memory.
PRE_PROCESSOR = {
    "class_path": "anomalib.pre_processing.PreProcessor",
    "init_args": {"transform": {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [64, 64]}}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Category `nut` in MVTec AD's layout: gray noise, black rectangles as defects."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 16), ("test/good", 5), ("test/hole", 5)):
        for number in range(count):
            image = rng.integers(100, 156, (48, 48, 3), dtype=np.uint8)
            mask = np.zeros((48, 48), dtype=np.uint8)
            if folder == "test/hole":
                mask[10:30, 8 + 4 * number : 24 + 4 * number] = 255
            image[mask > 0] = 0
            files = [(image, root / "nut" / folder / f"{number:03}.png")]
            if mask.any():
                files.append((mask, root / "nut" / "ground_truth" / "hole" / f"{number:03}_mask.png"))
            for pixels, path in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def config(root: Path) -> dict[str, Any]:
    """Benchmark of an untrained backbone on the small set."""
    return {
        "accelerator": "cpu",
        "benchmark": {
            "seed": 0,
            "model": {
                "class_path": {"grid": ["Patchcore", "SoftPatch"]},
                "init_args": {
                    "backbone": "test_resnet",
                    "layers": ["layer2", "layer3"],
                    "pre_trained": False,
                    "coreset_sampling_ratio": 0.1,
                    "visualizer": False,
                    "pre_processor": PRE_PROCESSOR,
                },
            },
            "data": {
                "class_path": "NoisyDataModule",
                "init_args": {
                    "noise_ratio": {"grid": [0, 0.2]},
                    "overlap": True,
                    "seed": "${seed}",
                    "datamodule": {
                        "class_path": "MVTecAD",
                        "init_args": {"root": str(root), "category": "nut", "num_workers": 0},
                    },
                },
            },
        },
    }


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict], pd.DataFrame]:
    """Return a function that runs a benchmark in this process and in its own folder, and returns the results."""
    monkeypatch.chdir(tmp_path)

    def run(config: dict[str, Any]) -> pd.DataFrame:
        (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
        NoiseBenchmark().run(Namespace(config="benchmark.yaml"))
        return results(tmp_path)

    return run


def results(folder: Path) -> pd.DataFrame:
    (path,) = folder.glob("runs/benchmark/*/results.csv")
    return pd.read_csv(path)


def test_the_stock_command_compares_models_and_our_command_makes_table_and_image(
    config: dict,
    tmp_path: Path,
    run_anomalib: Callable,
    run_forked: Callable,
) -> None:
    config["benchmark"]["seed"] = {"grid": [5, 6]}
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
    output = run_anomalib("benchmark", "--config", "benchmark.yaml", cwd=tmp_path).stderr

    table = results(tmp_path)
    assert len(table) == 8
    assert (table["data.init_args.seed"] == table["seed"]).all()
    assert set(table["model.class_path"]) == {"Patchcore", "SoftPatch"}
    noisy = table[table["data.init_args.noise_ratio"] == 0.2]
    assert noisy.groupby("model.class_path")["pixel_AUROC"].nunique().eq(2).all()
    for measure in ("image_AUROC", "pixel_AUROC", "pixel_AUPRO", "image_F1Score", "pixel_F1Score", "fit_duration"):
        assert table[measure].between(0, 1 if measure != "fit_duration" else 60).all(), measure
    for number in range(1, 9):
        assert f"{number}/8 " in output
    assert "Patchcore, seed=6, noise_ratio=0.2: Image AUROC" in output.replace(
        "noise_ratio=0.2, seed=6", "seed=6, noise_ratio=0.2"
    )

    (folder,) = tmp_path.glob("runs/benchmark/*")
    manifests = {path.name: len(pd.read_csv(path)) for path in folder.glob("manifest-*.csv")}
    assert manifests == {
        f"manifest-MVTecAD-noise{percent}-overlap-seed{seed}-nut.csv": count
        for percent, count in ((0, 0), (20, 3))
        for seed in (5, 6)
    }

    compare = "from anomalib_softpatch.cli import main; main()"
    shown = run_forked("-c", compare, "compare", folder / "results.csv", cwd=tmp_path).stdout
    assert table.groupby("data.init_args.noise_ratio")["noise_share"].unique().map(list).to_dict() == {
        0: [0],
        0.2: [pytest.approx(3 / 19)],
    }
    assert "### MVTecAD, 20 % noise (15.8 % of the training images), overlap" in shown
    assert "nut; mean ± standard deviation over 2 seeds." in shown
    assert shown.count("| SoftPatch |") == 2
    assert (folder / "comparison.md").read_text(encoding="utf-8") in shown
    assert (folder / "comparison.png").stat().st_size > 10_000


# The stock command, in a process that kills itself as soon as two runs have been saved
KILLED = f"""
import os, signal, threading, time
from pathlib import Path
import pandas as pd

def watch():
    while True:
        paths = list(Path().glob("runs/benchmark/*/results.csv"))
        if paths and len(pd.read_csv(paths[0])) >= 2:  # readable at any moment
            os.kill(os.getpid(), signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
{ANOMALIB}
"""


def test_a_killed_benchmark_keeps_its_finished_runs(config: dict, tmp_path: Path, run_forked: Callable) -> None:
    config["benchmark"]["seed"] = {"grid": list(range(100))}
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config))
    ended = run_forked("-c", KILLED, "benchmark", "--config", "benchmark.yaml", cwd=tmp_path, check=False)
    assert ended.returncode == (-signal.SIGKILL if os.name == "posix" else signal.SIGTERM), ended.stderr[-4000:]
    table = results(tmp_path)
    assert 2 <= len(table) < 400
    assert table["image_AUROC"].notna().all()


def test_a_failed_run_is_reported_and_the_others_are_finished(
    config: dict,
    run_here: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config["benchmark"]["data"]["init_args"]["noise_ratio"] = {"grid": [0.9, 0.2]}
    config["benchmark"]["data"]["init_args"]["overlap"] = False
    with pytest.raises(SystemExit) as error:
        run_here(config)
    assert error.value.code == 1
    output = capsys.readouterr().err
    assert "noise_ratio=0.9: failed: noise_ratio=0.9 requires 14 anomalous images" in output
    assert "2 runs failed, see runs/pipeline.log." in output
    assert list(results(tmp_path)["data.init_args.noise_ratio"]) == [0.2, 0.2]
    assert (tmp_path / "runs" / "pipeline.log").read_text().count("Traceback") >= 2
    assert "Initializing" not in output  # log messages would break the progress bar
    logging.getLogger("anomalib").warning("after the benchmark")
    assert "after the benchmark" in caplog.text  # logging is as it was


def test_a_model_that_does_not_exist_is_reported(
    config: dict,
    run_here: Callable,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config["benchmark"]["model"]["class_path"] = "NoSuchModel"
    with pytest.raises(SystemExit):
        run_here(config)
    assert "NoSuchModel, noise_ratio=0: failed: model=" in capsys.readouterr().err


def test_models_may_have_different_options(config: dict, run_here: Callable) -> None:
    common = config["benchmark"]["model"]["init_args"]
    config["benchmark"]["model"] = {
        "grid": [
            {"class_path": "Patchcore", "init_args": {**common, "num_neighbors": 1}},
            {"class_path": "SoftPatch", "init_args": {**common, "threshold": 0.3, "discriminator": "nearest"}},
        ],
    }
    config["benchmark"]["data"]["init_args"]["noise_ratio"] = 0.2
    table = run_here(config)
    assert table["model.init_args.threshold"].tolist()[1] == 0.3
    assert table["model.init_args.threshold"].isna().tolist() == [True, False]


def test_noise_options_that_are_left_out_are_recorded(config: dict, run_here: Callable) -> None:
    config["benchmark"]["model"]["class_path"] = "Patchcore"
    options = config["benchmark"]["data"]["init_args"]
    config["benchmark"]["data"]["init_args"] = {"datamodule": options["datamodule"]}
    table = run_here({**config, "other": "SoftPatch"})
    assert table[["data.init_args.noise_ratio", "data.init_args.overlap"]].to_numpy().tolist() == [[0.1, False]]


def test_nested_objects_and_the_environment(config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = [{"class_path": "torchvision.transforms.v2.CenterCrop", "init_args": {"size": [32, 32]}}]
    compose = {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": transforms}}
    part = config["benchmark"]
    part["model"]["class_path"] = "Patchcore"
    part["model"]["init_args"]["pre_processor"] = {
        "class_path": "anomalib.pre_processing.PreProcessor",
        "init_args": {"transform": compose},
    }
    part["data"]["init_args"]["datamodule"]["init_args"]["root"] = "${oc.env:DATA_ROOT,./datasets}/metal"
    part["seed"] = 3
    part["data"]["init_args"]["noise_ratio"] = 0.2
    generator = NoiseBenchmarkJobGenerator("cpu", tmp_path)
    job = generator.make_job(part)
    assert job.model.input_size == (32, 32)
    assert [metric.name for metric in job.model.evaluator.test_metrics].count("pixel_AUPRO") == 1
    assert job.datamodule.seed == 3
    assert job.datamodule.datamodule.root == Path("datasets/metal")
    assert job.flat_cfg["data.init_args.seed"] == 3
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert generator.make_job(part).datamodule.datamodule.root == tmp_path / "metal"


@pytest.mark.parametrize("part", ["seed", "model", "data"])
def test_a_missing_part_is_named(config: dict, tmp_path: Path, part: str) -> None:
    del config["benchmark"][part]
    with pytest.raises(LoggerRedirectError) as error:
        NoiseBenchmarkJobGenerator("cpu", tmp_path).make_job(config["benchmark"])
    assert f"has no '{part}'" in str(error.value.__cause__)


@pytest.mark.parametrize("part", ["accelerator", "benchmark"])
def test_a_missing_heading_is_named(config: dict, run_here: Callable, part: str) -> None:
    del config[part]
    with pytest.raises(ValueError, match=f"has no '{part}'"):
        run_here({**config, "other": "SoftPatch"})


def test_other_benchmarks_run_anomalibs_own_code(
    config: dict, run_here: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["benchmark"]["model"]["class_path"] = "Padim"
    config["benchmark"]["data"] = config["benchmark"]["data"]["init_args"]["datamodule"]
    ran = []
    monkeypatch.setattr(Benchmark, "run", lambda self, args: ran.append((self, args)))
    with pytest.raises(ValueError, match="not enough values"):  # no results
        run_here(config)
    assert len(ran) == 1


def test_runs_in_another_process_measure_the_same(config: dict, run_here: Callable, tmp_path: Path) -> None:
    """The same seed gives the same result in each process. Processes are spawned, as GPUs require.

    Several processes at a time are tested in `unit/benchmark/test_runners.py`. With GPUs, only the index that a job
    gets is different.
    """
    config["benchmark"]["data"]["init_args"]["noise_ratio"] = 0.2
    expected = run_here(config).set_index("model.class_path")
    table = ResultTable(tmp_path / "parallel" / "results.csv")
    console = Console(file=io.StringIO(), width=200)
    generator = NoiseBenchmarkJobGenerator("cpu", manifests=table.path.parent)
    log_file = tmp_path / "parallel.log"
    runner = ParallelRunner(generator, table, console, devices=[None], log_file=log_file)
    rows = runner.run(config["benchmark"])
    found = pd.read_csv(table.path).set_index("model.class_path")
    measures = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO"]
    pd.testing.assert_frame_equal(found.loc[expected.index, measures], expected[measures], check_exact=True)
    assert len(rows) == len(expected) == 2
    assert runner.failures == 0
    assert sorted(path.name for path in table.path.parent.iterdir()) == [
        "manifest-MVTecAD-noise20-overlap-seed0-nut.csv",
        "results.csv",
    ]
    assert "2/2 " in console.file.getvalue()
    assert "Seed set to 0" in log_file.read_text()  # by Lightning, in the other processes


def test_the_noise_of_a_run_is_in_its_results_folder(run_anomalib: Callable, root: Path, tmp_path: Path) -> None:
    data = ["--data=NoisyDataModule", "--data.datamodule=MVTecAD", "--data.datamodule.category=nut"]
    options = [f"--data.datamodule.root={root}", "--data.datamodule.num_workers=1", "--data.noise_ratio=0.5"]
    model = [
        "--model=SoftPatch",
        "--model.backbone=test_resnet",
        "--model.pre_trained=false",
        "--model.visualizer=false",
    ]
    model.append(f"--model.pre_processor={json.dumps(PRE_PROCESSOR)}")
    run_anomalib("train", *model, *data, *options, "--data.overlap=true", "--trainer.accelerator=cpu", cwd=tmp_path)
    folder = tmp_path / "results" / "SoftPatch" / "MVTecAD-noise50-overlap-seed0" / "nut" / "v0"
    manifest = folder / "manifest-noise50-overlap-seed0.csv"
    assert pd.read_csv(manifest)["repeat"].tolist() == [0] * 5 + [1] * 3

    again = NoisyDataModule(
        {"class_path": "MVTecAD", "init_args": {"root": str(root), "category": "nut"}}, manifest=manifest
    )
    again.setup()
    assert len(again.train_data) == 24
    assert again.name == "MVTecAD-manifest-noise50-overlap-seed0"
