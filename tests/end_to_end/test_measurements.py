# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Scripts in `benchmarks/` run at small sizes, and write files that the documents can show. Times are not tested."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import results
from references import REPEATED, auroc, synthetic_features

pytestmark = pytest.mark.usefixtures("kolektor", "backbone")


# Runs a script with its processes forked instead of spawned, which saves each of them the imports. It fails if their
# arguments could not be sent to a spawned process.
FORKED = """
import multiprocessing, pickle, runpy, sys
from pathlib import Path
from types import SimpleNamespace

def process(target, args):
    pickle.dumps(args[1:])  # all but the queue
    return fork.Process(target=target, args=args)

fork = multiprocessing.get_context("fork")
multiprocessing.get_context = lambda _: SimpleNamespace(SimpleQueue=fork.SimpleQueue, Process=process)
del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def measure(run_forked: Callable, tmp_path: Path) -> Callable[..., tuple[str, dict]]:
    """Return a function that runs a script with `--quick`, and returns its output and the record that it wrote."""

    def run(script: str, *options: str) -> tuple[str, dict]:
        command = [ROOT / "benchmarks" / script, "--quick", "--threads=1", "--save=figures.json", *options]
        before = ["-c", FORKED] if hasattr(os, "fork") else []
        printed = run_forked(*before, *command, cwd=tmp_path).stdout
        record = json.loads((tmp_path / "figures.json").read_text())
        for name, columns in record["rows"].items():  # the documents can show each of them
            key = next(key for runs in columns for run in runs for key in run)
            assert f"\n| {name} | " in results.rendered(record, {"keys": key})
        return printed, record

    return run


def values(record: dict, row: str, key: str = "value") -> list[list[float]]:
    return [[run[key] for run in runs] for runs in record["rows"][row]]


def test_exported(measure: Callable) -> None:
    _, record = measure("exported.py", "--batches=1", "--layers=layer1", "--size=64")
    assert record["headings"] == ["", "Anomalib Patchcore", "SoftPatch"]
    for name in record["rows"]:
        patchcore, with_its_bank = scores = torch.tensor(values(record, name, "score"))
        torch.testing.assert_close(with_its_bank, patchcore, rtol=1e-3, atol=0)
        in_the_other = values(record, name.replace("OpenVINO", "ONNX Runtime"), "score")
        torch.testing.assert_close(scores, torch.tensor(in_the_other), rtol=1e-3, atol=0)
        assert all(size > 800 * 32 * 4 / 2**20 for (size, *_) in values(record, name, "file"))  # of the bank


def test_comparison(measure: Callable, tmp_path: Path) -> None:
    printed, record = measure("comparison.py", "--layers=layer1", "--plot=plot.png")
    assert record["headings"] == ["", "Patchcore", "SoftPatchPlus (paper)"]
    # All runtimes give the scores of the checkpoint that the files were exported from.
    assert float(re.search(r"image scores to those of torch: (\S+)", printed)[1]) < 1e-3
    rows = int(0.1 * 8 * 16**2)  # 8 images of 64 px: the layer has 16 x 16 patches
    (of_patchcore,), (of_both,) = values(record, "rows of the memory bank")
    assert of_patchcore == rows < of_both <= 2 * rows
    for kind in ("checkpoint", "ONNX", "OpenVINO"):
        assert all(size > rows * 32 * 4 / 2**20 for (size,) in values(record, f"{kind} file [MiB]"))
    for runtime in ("torch", "ONNX Runtime", "OpenVINO"):
        baseline, ours = values(record, f"{runtime}, batch 2 [ms]", "wall")
        ratios = values(record, f"{runtime}, batch 2 [ms]", "wall_ratio")
        assert ratios[0] == [100, 100]
        assert ratios[1] == pytest.approx([100 * a / b for a, b in zip(ours, baseline, strict=True)], abs=0.1)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1650, 1200)


def test_gpu_on_the_cpu(measure: Callable) -> None:
    _, record = measure("gpu.py", "--device=cpu")
    assert values(record, "rows as on the CPU [%]") == [[], [100]]
    assert values(record, "scores, largest difference [1e-6]") == [[], [0]]
    whole = values(record, "batch 2: whole [ms]", "wall")
    assert [len(runs) for runs in whole] == [2, 2]
    parts = [values(record, f"batch 2: {stage} [ms]", "wall") for stage in ("backbone", "search", "map")]
    for model in range(2):
        summed = [sum(run) for run in zip(*(part[model] for part in parts), strict=True)]
        assert summed == pytest.approx(whole[model], abs=1e-3)


def test_image_size(measure: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 8), ("test/good", 3), ("test/defect", 3)):
        for number in range(count):
            pixels = rng.integers(100, 156, (96, 160), dtype=np.uint8)
            mask = np.zeros_like(pixels)
            if kind == "test/defect":
                mask[30:60, 100:130] = 255
                file = tmp_path / "parts" / "ground_truth" / "defect" / f"{number}_mask.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(file)
            pixels[mask > 0] = 0
            (tmp_path / "parts" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "parts" / kind / f"{number}.png")
    _, record = measure("image_size.py", f"--root={tmp_path}", "--category=parts", "--sizes", "64x64", "tiles",
                        "--tile", "64", "32", "--tile-coreset", "0.01", "--map-size", "48", "80")  # fmt: skip
    patches = {
        "64 x 64": 8 * 8,
        "96 x 160 in tiles of 64 every 32, coreset 0.01": 12 * 20,
    }
    assert record["rows"].keys() == patches.keys()
    for name, count in patches.items():
        (run,) = record["rows"][name][0]
        assert run["bank"] == pytest.approx(int(0.01 * 8 * count) / 1000, abs=1e-3)
        assert run["image"] == 100
        assert run["pixel"] > 90
        assert run["peak"] > 0


@pytest.fixture
def elpv(tmp_path: Path) -> Path:
    """Make a folder like that of the package elpv-dataset: 40 polycrystalline cells, 16 defective and 4 doubtful."""
    data = tmp_path / "elpv" / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    probabilities = 20 * ["0.0"] + 8 * ["0.6666666666666666"] + 8 * ["1.0"] + 4 * ["0.3333333333333333"] + 9 * ["1.0"]
    lines = []
    for number, probability in enumerate(probabilities):
        pixels = np.random.default_rng(number).integers(100, 156, (64, 64), dtype=np.uint8)
        pixels[20:40, 20 : 20 + int(30 * float(probability))] = 0
        Image.fromarray(pixels).save(data / "images" / f"cell{number:04}.png")
        lines.append(f"images/cell{number:04}.png  {probability}  {'poly' if number < 40 else 'mono'}")
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "elpv"


def test_robustness(measure: Callable, mvtec_root: Path, elpv: Path, tmp_path: Path) -> None:
    options = ["--sets", "bottle", "solar", f"--root={mvtec_root}", f"--elpv={elpv}", "--coreset=0.1"]
    options += ["--ratios", "0", "0.2", "0.4", "--settings", "patchcore", "softpatch", f"--cache={tmp_path / 'cache'}"]
    printed, record = measure("robustness.py", *options, "--plot=plot.png")
    assert record["headings"][1:] == ["0%", "20% (16.7% of all)", "40% (28.6% of all)", "most", "as it is"]
    # 8 normal training images; 2 of 4 anomalous images must stay in the test set
    for setting in ("PatchCore, trained clean", "patchcore", "softpatch"):
        shares = {
            name: values(record, f"{name}: {setting}", "share") for name in ("bottle, overlap", "bottle, no overlap")
        }
        one, two, three = ([pytest.approx(100 * noise / (8 + noise), abs=1e-3)] for noise in (1, 2, 3))
        assert shares == {"bottle, overlap": [[0], one, three, [], []], "bottle, no overlap": [[0], one, [], two, []]}
    assert "most (20.0% of all)" in printed
    assert "| no overlap: softpatch |" in printed
    # A share of half of the cells, chosen independently of the names of the files
    *none, (share,) = values(record, "solar, as it is: patchcore", "share")
    assert none == [[], [], [], []]
    (doubtful,) = values(record, "solar, as it is: patchcore", "doubtful")[-1]
    assert 0 < share < doubtful < 100
    assert share * 20 / 100 == pytest.approx(round(share * 20 / 100), abs=1e-3)
    assert "pixel" not in record["rows"]["solar, as it is: patchcore"][-1][0]
    # Differences are from the same training images without noise, on the same test images
    for name in ("bottle, overlap", "bottle, no overlap", "solar, as it is"):
        for column, clean in enumerate(record["rows"][f"{name}: PatchCore, trained clean"]):
            for run in record["rows"][f"{name}: patchcore"][column]:
                assert run["image distance"] == pytest.approx(run["image"] - clean[0]["image"], abs=1e-3)
                assert all(
                    0 <= run[f"{key} {asked}"] <= 100 for key in ("had", "found", "labeled") for asked in (1, 5, 10)
                )
                if run["share"]:
                    assert 0 <= run["ranking out of bag"] <= 100
    assert record["rows"]["bottle, overlap: patchcore"][0][0]["image distance"] == 0
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"

    # With the same file again, missing numbers are measured and the others stay; other options are refused
    del record["rows"]["bottle, overlap: softpatch"][2][0]
    (tmp_path / "figures.json").write_text(json.dumps(record))
    printed, again = measure("robustness.py", *options)
    assert printed.count("\n# ") == 1
    assert [len(runs) for runs in again["rows"]["bottle, overlap: softpatch"]] == [1, 1, 1, 0, 0]
    assert again["rows"]["bottle, overlap: patchcore"] == record["rows"]["bottle, overlap: patchcore"]
    with pytest.raises(pytest.fail.Exception, match="has figures of other options"):
        measure("robustness.py", *options, "--coreset=0.2")
    with pytest.raises(pytest.fail.Exception, match="there is no set 'bottel'"):
        measure("robustness.py", "--sets=bottel")


def test_references(measure: Callable) -> None:
    _, record = measure("references.py", "--ratios=0.4")
    assert record["headings"] == ["", "50", "no cap"]
    for name in ("lof", "knn", "gaussian"):
        few, all_others = values(record, f"{name}, 40% noise", "single")
        assert 0 <= few[0] <= 100
        assert 70 < all_others[0] <= 100


def test_noise_of_the_synthetic_features() -> None:
    """The distance to the median of the normal patches of the most frequent variant finds the noise."""
    features, kind = synthetic_features(2000, 2, 0.1, strength=3.0, seed=0)
    assert features.shape == (2000, 2, 2, 128)
    assert kind.bincount().tolist() == [1800, 200 - round(2000 * REPEATED), round(2000 * REPEATED)]
    patches = features[:, 1, 0]
    distances = (patches - patches[kind == 0].median(dim=0).values).norm(dim=1)
    assert auroc(distances[kind == 2], distances[kind == 0]) > 95
    # Copies of the repeated defect are close to each other, single defects are not.
    copies, single = (torch.cdist(patches[kind == each], patches[kind == each]).median() for each in (2, 1))
    assert copies < 0.5 * single
