# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The recipes of CONTRIBUTING.md, followed with the code that they show."""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from timm.models import save_for_hf

from anomalib_softpatch import SoftPatch, backbones
from anomalib_softpatch.cleaning.stages import Options, prepare
from anomalib_softpatch.cli import main
from anomalib_softpatch.components import DISCRIMINATORS, PatchFeatureExtractor
from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.report import exports
from conftest import ROOT


def code(recipe: str) -> list[str]:
    """What a recipe shows: a function, and a line of a table if there is one."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {recipe}\n(.*?)^##", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", section.group(1), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def follow(recipe: str, module: object, table: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the function and the line where the recipe says."""
    function, line = code(recipe)
    namespace = dict(vars(module))
    exec(function, namespace)
    for name, value in eval(f"{{{line}}}", namespace).items():
        monkeypatch.setitem(table, name, value)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> timm.models.ResNet:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", pretrained=False)


@pytest.fixture
def spread() -> Iterator[None]:
    (module,) = code("A discriminator")
    exec(module, {})
    yield
    del DISCRIMINATORS["spread"]


@pytest.mark.usefixtures("spread")
def test_a_discriminator_with_a_parameter_of_its_own(images: torch.Tensor) -> None:
    """Scores are mean distances to the nearest patches at the same position, by scikit-learn."""
    options = {"backbone": "test_resnet", "layers": ["layer1"], "pre_trained": False, "discriminator": "spread"}
    for given, neighbors in (({"spread_k": 2}, 2), (None, 3)):
        model = SoftPatch(**options, discriminator_options=given).model
        features = model.train()(images)
        model.fit()
        assert model.eval()(images).pred_score.isfinite().all()
        for row, column in ((0, 0), (7, 15)):
            group = features[:, row, column].numpy()
            distances, _ = NearestNeighbors(n_neighbors=neighbors).fit(group).kneighbors()
            scores = model.denoising.scores.fused[:, row, column]
            np.testing.assert_allclose(scores, distances.mean(axis=1), rtol=1e-3)
    for wrong in ({"spread_k": 0}, {"lof_k": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SoftPatch(**options, discriminator_options=wrong)


@pytest.mark.usefixtures("spread")
def test_the_command_line_has_the_parameter(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(SoftPatch, "model")
    given = ["--model.discriminator=spread", "--model.discriminator_options.spread_k=2"]
    found = parser.parse_args(given).model
    assert (found.discriminator, found.discriminator_options) == ("spread", {"spread_k": 2})
    extraction = Extraction("test_resnet", ["layer1"], 64, feature_cache=tmp_path)
    own = {"discriminator": "spread", "discriminator_options": {"spread_k": 0}}
    with pytest.raises(ValueError, match="spread_k=0 must be a whole number of 1 or more"):
        prepare(Options("SoftPatch", extraction, None, own), [])


def test_a_way_to_name_a_backbone(
    images: torch.Tensor, network: timm.models.ResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features are those of the network itself, whose pooled layer is that of a forward hook."""
    follow("A way to name a backbone", backbones, backbones.SOURCES, monkeypatch)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    name = f"weights-file:test_resnet,{tmp_path / 'weights.pth'}"
    outputs = []
    network.layer1.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.no_grad():
        network.eval()(images)
    expected = torch.nn.functional.avg_pool2d(outputs[0], 3, stride=1, padding=1).permute(0, 2, 3, 1)
    model = SoftPatch(backbone=name, layers=["layer1"]).model.train()
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(PatchFeatureExtractor(name, ["layer1"]).eval()(images), expected)
    assert backbones.choose_backbone(name, ["layer1"], None).name == name
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(ValueError, match="there is no such file"):
        SoftPatch(backbone=name, layers=["layer1"])


def test_an_export_of_the_report(network: timm.models.ResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From both commands, with the suspicious image first; a second run of clean-train has nothing to do."""
    follow("An export of the report", exports, exports.EXPORTS, monkeypatch)
    save_for_hf(network, tmp_path / "weights")
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(120, 136, (64, 64, 3), dtype=np.uint8)
        pixels[16:32, 16:32] = 0 if number == 5 else pixels[16:32, 16:32]
        Image.fromarray(pixels).save(folder / f"{number}.png")
    shared = ["--backbone", f"local-dir:{tmp_path / 'weights'}", "--layers", "[layer2]", "--image_size", "64"]
    main(["report", str(folder), "--output", str(tmp_path / "report"), *shared, "--export", "names"])
    command = ["clean-train", str(folder), "--output", str(tmp_path / "trained"), *shared, "--report_export", "names"]
    main(command)
    for output in (tmp_path / "report", tmp_path / "trained" / "report"):
        content = json.loads((output / "names.json").read_text())
        assert content["names"][0] == "5.png"
        assert sorted(content["names"]) == [f"{number}.png" for number in range(8)]
    written = (tmp_path / "trained" / "report" / "names.json").stat().st_mtime_ns
    main(command)
    assert (tmp_path / "trained" / "report" / "names.json").stat().st_mtime_ns == written
    (tmp_path / "trained" / "report" / "names.json").unlink()
    main(command)
    assert (tmp_path / "trained" / "report" / "names.json").is_file()
