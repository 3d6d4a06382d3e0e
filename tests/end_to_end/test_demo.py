# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The demo, from its first line of output to the figure."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import COMMAND
from samples import save_random_weights

MODELS = ["PatchCore", "SoftPatch", "SoftPatchPlus"]
FEWER_TEST_IMAGES = """
from anomalib_softpatch.demo.dataset import make_dataset
make_dataset.__kwdefaults__.update(num_test_good=5, num_test_per_defect=3)
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    backbone = save_random_weights(tmp_path_factory.mktemp("weights"))
    return ("--backbone", backbone, "--layers", "[layer2]")


def test_demo(backbone, run_forked, tmp_path):
    """A run does not change an earlier one next to it."""
    earlier = tmp_path / "demo" / "run-001" / "results.csv"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("precious")
    small = ("--num_train", 12, "--num_hidden", 6)
    printed = run_forked("-c", FEWER_TEST_IMAGES + COMMAND, "demo", *backbone, *small, cwd=tmp_path).stdout
    assert earlier.read_text() == "precious"
    folder = tmp_path / "demo" / "run-002"
    assert "demo/run-002/heat_maps.png" in printed.replace("\\", "/")
    table = pd.read_csv(folder / "results.csv", index_col=0)
    assert list(table.index) == MODELS
    assert len(table["pixel"].unique()) == len(MODELS)
    for model in MODELS:
        assert f"Training and testing {model}" in printed
        assert f"{table.loc[model, 'image']:.1f}" in printed
        assert len([*folder.rglob(f"results/{model.replace('PatchCore', 'Patchcore')}/**/model.ckpt")]) == 1
    # PatchCore takes the hidden defects for normal
    assert table.loc["SoftPatch", "image"] > table.loc["PatchCore", "image"] + 5
    assert len([*folder.rglob("gravel/train/good/*.png")]) == 18

    image = np.asarray(Image.open(folder / "heat_maps.png").convert("RGB"))
    assert image.shape[0] > 600
    assert image.shape[1] > 1000
    assert (image[0] == 255).all()  # light background
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "local-dir:nowhere"], "there is no config.json in that folder"),
        (["--backbone", "resnet17"], "'resnet17' is not a model of timm"),
        (["--backbone", "test_resnet", "--weights", "lite2"], "Give either backbone or weights"),
        (["--layers", "[layer9]"], "layer9"),
        (["--num_hidden", 25], "num_hidden must be between 0 and the number of defective test images, 24, got 25"),
        (["--num_train", 0], "num_train must be at least 1, got 0"),
    ],
)
def test_bad_arguments_leave_nothing_behind(backbone, options, message, run_forked, tmp_path):
    result = run_forked("-c", COMMAND, "demo", *backbone, *options, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("ends_with", "status", "message"),
    [
        ("KeyboardInterrupt", 130, "Stopped. The last folder in demo is incomplete"),
        ("SystemExit", 130, "Stopped."),  # of Lightning, when it is interrupted
        ("RuntimeError('no weights')", 2, "anomalib-softpatch demo: no weights"),
    ],
)
def test_an_interrupted_run_reports_it_and_leaves_no_table(backbone, ends_with, status, message, run_forked, tmp_path):
    code = f"""if True:
        from anomalib.engine import Engine
        def fit(*args, **kwargs):
            raise {ends_with}
        Engine.fit = fit
        {COMMAND}
    """
    result = run_forked("-c", code, "demo", *backbone, "--num_train", 2, "--num_hidden", 0, cwd=tmp_path, check=False)
    assert (result.returncode, message in result.stderr) == (status, True), result.stderr
    assert not [*tmp_path.rglob("results.csv"), *tmp_path.rglob("heat_maps.png")]
