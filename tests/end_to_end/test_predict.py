# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""From a folder of unlabeled images to verdicts: with the stock command, with ours, and with exported files."""

import ast
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomalib_softpatch.models.visualizer import COLORS
from conftest import COMMAND

ROOT = Path(__file__).resolve().parents[2]
NAME = ("--model", "SoftPatch")  # after training, the options come from the checkpoint
MODEL = (
    *NAME, "--model.backbone", "test_resnet", "--model.layers", "[layer1, layer2]",
    "--model.pre_trained", "false", "--model.coreset_sampling_ratio", "0.02", "--model.noise_report", "false",
)  # fmt: skip
QUIET = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")


@pytest.fixture(scope="module")
def trained(mvtec_root, run_anomalib, tmp_path_factory):
    """Return the folder of a model that was trained without labels, its checkpoint and its exported files."""
    folder = tmp_path_factory.mktemp("trained")
    result = run_anomalib(
        "train", *MODEL, *QUIET, "--data", "Folder", "--data.name", "set", "--data.root", mvtec_root / "bottle",
        "--data.normal_dir", "train/good", "--data.num_workers", 0, cwd=folder,
    )  # fmt: skip
    assert "image_AUROC, image_F1Score cannot be computed" in result.stdout + result.stderr
    checkpoint = next(folder.rglob("model.ckpt"))
    export = ("export", *NAME, "--ckpt_path", checkpoint, "--export_root", folder, "--export_type")
    for kind in ("onnx", "openvino"):
        result = run_anomalib(*export, kind, cwd=folder)
        assert "Traceback" not in result.stdout + result.stderr
    return folder, checkpoint, next(folder.rglob("*.onnx")), next(folder.rglob("*.xml"))


@pytest.fixture(scope="module")
def images(mvtec_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for kind in ("good", "broken_small"):
        for path in (mvtec_root / "bottle" / "test" / kind).iterdir():
            shutil.copy(path, folder / f"{kind}-{path.name}")
    return folder


@pytest.fixture(scope="module")
def predicted(trained, images, run_forked):
    folder, checkpoint, *_ = trained
    output = folder / "ours.csv"
    result = run_forked("-c", COMMAND, "predict", images, "--ckpt_path", checkpoint, "--output", output, cwd=folder)
    return result.stdout, pd.read_csv(output)


def test_verdicts_without_labels(predicted, images):
    """The options name neither the model nor its settings. Black squares in gray noise are found."""
    text, table = predicted
    assert list(table) == ["path", "score", "threshold", "verdict", "x", "y", "reason", "modified", "model"]
    assert [Path(path) for path in table["path"]] == sorted(images.iterdir())
    defective = table["path"].str.contains("broken")
    assert (table["verdict"][defective] == "anomalous").all()
    assert (table["verdict"] == "anomalous").equals(table["score"] > table["threshold"])
    assert table["score"][defective].min() > table["score"][~defective].max()
    assert table[defective][["x", "y"]].apply(lambda row: 24 <= row["x"] < 48 and 16 <= row["y"] < 40, axis=1).all()
    lines = text.strip().splitlines()
    assert len(lines) == len(table) + 1
    assert lines[-1].startswith(f"{(table['verdict'] == 'anomalous').sum()} of 8 images anomalous: ")


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_exported_files_agree(kind, trained, images, predicted, run_forked):
    folder, _, onnx, xml = trained
    file, output = {"onnx": onnx, "xml": xml}[kind], folder / f"{kind}.csv"
    run_forked("-c", COMMAND, "predict", images, "--model", file, "--output", output, cwd=folder)
    table, expected = pd.read_csv(output), predicted[1]
    np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-3)
    assert table["verdict"].equals(expected["verdict"])
    # Maps are smooth: neighbors of the highest pixel may differ from it by no more than rounding
    assert (table[["x", "y"]] - expected[["x", "y"]]).abs().max().max() <= 8


def test_options_that_do_not_fit_the_checkpoint(trained, images, run_anomalib):
    """Options of the command line count, and one line names those that do not fit."""
    folder, checkpoint, *_ = trained
    arguments = ("predict", *NAME, "--model.layers", "[layer2]", *QUIET, "--data", images, "--ckpt_path", checkpoint)
    result = run_anomalib(*arguments, cwd=folder, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "was made with layers=['layer1', 'layer2'], but the model has layers=['layer2']: give it the same" in last


def test_stock_command_gives_the_same(trained, images, predicted, run_anomalib):
    folder, checkpoint, *_ = trained
    result = run_anomalib("predict", *NAME, *QUIET, "--data", images, "--ckpt_path", checkpoint, cwd=folder)
    table = pd.read_csv(next(folder.rglob("predictions.csv"))).sort_values("path", ignore_index=True)
    expected = predicted[1]
    assert table["path"].tolist() == expected["path"].tolist()
    np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-4)
    assert table["verdict"].equals(expected["verdict"])
    assert "of 8 images anomalous" in result.stdout
    strips = {path.name: np.asarray(Image.open(path)) for path in folder.rglob("images/**/*.png")}
    for path, verdict in zip(table["path"], table["verdict"], strict=True):
        assert tuple(strips[Path(path).name][-1, 0]) == COLORS[verdict]


# Text that identifies each Python snippet in the README and the guide for engineers, and how it prints a verdict
SNIPPETS = {
    "load_model(": {"anomalous": "anomalous", "normal": "normal"},
    "onnxruntime.InferenceSession(": {"anomalous": "True", "normal": "False"},
    "openvino.Core()": {"anomalous": "True", "normal": "False"},
}
RANKING = "rank_images("
# Replaces the hub's weights by random ones of a small network, so that the snippet runs without a network connection
WITHOUT_HUB = """
import functools, timm
from anomalib_softpatch.components import patch_features
patch_features.check_weights = lambda _: None
create = timm.create_model
small = {"wide_resnet50_2": "test_resnet"}
timm.create_model = functools.wraps(create)(
    lambda name, **kwargs: create(small[name], **kwargs | {"pretrained": False})
)
"""


def snippets() -> list[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "engineers.md"))
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def snippet(mark: str) -> str:
    (code,) = [code for code in snippets() if mark in code]
    return code


@pytest.fixture(scope="module")
def as_in_readme(trained, images, tmp_path_factory):
    """Make a folder with the files that the README and the guide for engineers use."""
    folder = tmp_path_factory.mktemp("readme")
    _, checkpoint, onnx, xml = trained
    places = {
        "results/SoftPatchPlus/bolts/latest/weights/lightning/model.ckpt": checkpoint,
        "results/weights/onnx/model.onnx": onnx,
        "results/weights/openvino/model.xml": xml,
        "results/weights/openvino/model.bin": xml.with_suffix(".bin"),
    }
    for place, file in places.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / place)
    shutil.copytree(images, folder / "new_images")
    shutil.copytree(images, folder / "bolts" / "unsorted")
    return folder


def test_no_python_in_the_guides_is_left_out():
    assert len(snippets()) == len(SNIPPETS) + 1
    assert all(snippet(mark) for mark in [*SNIPPETS, RANKING])


@pytest.mark.parametrize("mark", SNIPPETS)
def test_python_in_the_guides_gives_the_same_verdicts(mark, as_in_readme, predicted, run_python, run_forked):
    table = predicted[1]
    run = (
        run_forked if "load_model" in mark else run_python
    )  # snippets for exported files run without importing this package
    result = run("-c", snippet(mark), cwd=as_in_readme)
    lines = [line.split() for line in result.stdout.splitlines() if re.search(r"\.png [\d.e-]+ \w+$", line)]
    found = {Path(path).name: (float(score), word) for path, score, word in lines}
    assert found.keys() == {Path(path).name for path in table["path"]}
    for path, score, verdict in zip(table["path"], table["score"], table["verdict"], strict=True):
        assert found[Path(path).name] == (pytest.approx(score, rel=1e-3), SNIPPETS[mark][verdict])


def test_ranking_in_the_guides_runs(as_in_readme, run_forked):
    code = snippet(RANKING)
    assert code.splitlines()[-1].endswith(".head()")
    table = f"{WITHOUT_HUB}\n{code}\nprint(findings.table['path'].to_list())"
    paths = run_forked("-c", table, cwd=as_in_readme).stdout.splitlines()[-1]
    assert {Path(path).name for path in ast.literal_eval(paths)} == {
        path.name for path in (as_in_readme / "new_images").iterdir()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ckpt_path", "absent.ckpt"), "absent.ckpt is not a file"),
        ((), "Give either ckpt_path"),
        (("--model", __file__), "must be an exported .onnx or .xml file"),
    ],
)
def test_bad_input(arguments, message, images, tmp_path, run_python):
    result = run_python("-c", COMMAND, "predict", images, *arguments, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
