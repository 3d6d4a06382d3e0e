# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Scripts in `benchmarks/` run, at small sizes, and write what the documents can show. Times are not looked at."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import results
from references import REPEATED, auroc, synthetic_features

pytestmark = pytest.mark.usefixtures("kolektor", "backbone")


@pytest.fixture
def measure(run_python: Callable, tmp_path: Path) -> Callable[..., tuple[str, dict]]:
    """Function that runs a script with `--quick`; returns what it printed and the record that it wrote."""

    def run(script: str, *options: str) -> tuple[str, dict]:
        command = [ROOT / "benchmarks" / script, "--quick", "--threads=1", "--save=figures.json", *options]
        printed = run_python(*command, cwd=tmp_path).stdout
        record = json.loads((tmp_path / "figures.json").read_text())
        for name, columns in record["rows"].items():  # the documents can show each of them
            key = next(key for runs in columns for run in runs for key in run)
            assert f"\n| {name} | " in results.rendered(record, {"keys": key})
        return printed, record

    return run


def values(record: dict, row: str, key: str = "value") -> list[list[float]]:
    return [[run[key] for run in runs] for runs in record["rows"][row]]


def test_exported(measure: Callable) -> None:
    _, record = measure("exported.py", "--batches", "1")
    assert record["headings"] == [
        "",
        "Anomalib Patchcore",
        "SoftPatch, plain search",
        "SoftPatch",
        "SoftPatchPlus, two banks",
        "SoftPatchPlus as published",
    ]
    for name in record["rows"]:
        patchcore, *with_its_bank, _, _ = scores = torch.tensor(values(record, name, "score"))
        for found in with_its_bank:
            torch.testing.assert_close(found, patchcore, rtol=1e-3, atol=0)
        in_the_other = values(record, name.replace("OpenVINO", "ONNX Runtime"), "score")
        torch.testing.assert_close(scores, torch.tensor(in_the_other), rtol=1e-3, atol=0)
        sizes = [sizes[0] for sizes in values(record, name, "file")]
        assert sizes[2:] == sorted(sizes[2:])


def test_comparison(measure: Callable, tmp_path: Path) -> None:
    printed, record = measure("comparison.py", "--plot=plot.png")
    assert record["headings"] == ["", "Patchcore", "SoftPatchPlus (paper)"]
    # The files are those of the models: all runtimes give the scores of the checkpoint.
    assert float(re.search(r"image scores to those of torch: (\S+)", printed)[1]) < 1e-3
    rows = int(0.1 * 8 * 8**2)  # of 8 images of 64 px: the finer layer has 8 x 8 patches
    (of_patchcore,), (of_both,) = values(record, "rows of the memory bank")
    assert of_patchcore == rows < of_both <= 2 * rows
    for kind in ("checkpoint", "ONNX", "OpenVINO"):
        assert all(size > rows * (128 + 256) * 4 / 2**20 for (size,) in values(record, f"{kind} file [MiB]"))
    for runtime in ("torch", "ONNX Runtime", "OpenVINO"):
        for batch in (1, 2):
            baseline, ours = values(record, f"{runtime}, batch {batch} [ms]", "wall")
            ratios = values(record, f"{runtime}, batch {batch} [ms]", "wall_ratio")
            assert ratios[0] == [100, 100]
            assert ratios[1] == pytest.approx([100 * a / b for a, b in zip(ours, baseline, strict=True)], abs=0.1)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1650, 1200)


def test_gpu_on_the_cpu(measure: Callable) -> None:
    _, record = measure("gpu.py", "--device=cpu")
    assert values(record, "rows as on the CPU [%]") == [[], [100]]
    assert values(record, "scores, largest difference [1e-6]") == [[], [0]]
    for batch in (1, 2):
        whole = values(record, f"batch {batch}: whole [ms]", "wall")
        assert [len(runs) for runs in whole] == [2, 2]
        parts = [values(record, f"batch {batch}: {stage} [ms]", "wall") for stage in ("backbone", "search", "map")]
        for model in range(2):
            summed = [sum(run) for run in zip(*(part[model] for part in parts), strict=True)]
            assert summed == pytest.approx(whole[model], abs=1e-3)


def test_references(measure: Callable) -> None:
    _, record = measure("references.py", "--ratios=0.4")
    assert record["headings"] == ["", "50", "no cap"]
    for name in ("lof", "simplified_lof", "gaussian"):
        few, all_others = values(record, f"{name}, 40% noise", "single")
        assert 0 <= few[0] <= 100
        assert 70 < all_others[0] <= 100


def test_noise_of_the_synthetic_features() -> None:
    """Found here by the distance to the median of the normal patches of the most frequent variant."""
    features, kind = synthetic_features(2000, 2, 0.1, strength=3.0, seed=0)
    assert features.shape == (2000, 2, 2, 128)
    assert kind.bincount().tolist() == [1800, 200 - round(2000 * REPEATED), round(2000 * REPEATED)]
    patches = features[:, 1, 0]
    distances = (patches - patches[kind == 0].median(dim=0).values).norm(dim=1)
    assert auroc(distances[kind == 2], distances[kind == 0]) > 95
    # Copies of the repeated defect lie close to each other, those of single ones do not.
    copies, single = (torch.cdist(patches[kind == each], patches[kind == each]).median() for each in (2, 1))
    assert copies < 0.5 * single
