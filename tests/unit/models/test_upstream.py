# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The module that could be offered to Anomalib works without the plugin, and gives the plugin's scores."""

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from timm.models import save_for_hf

import anomalib_softpatch
from anomalib_softpatch import SoftPatchPlus

PLUGIN = Path(anomalib_softpatch.__file__).parent
OFFERED = Path(__file__).parents[3] / "docs" / "upstream" / "lightning_model.py"
LAYERS = ["layer1", "layer2"]
# Parts of the plugin that the module may use: none of its commands, reports and pages
ROOMS = {"components", "models", "images", "backbones", "files", "options", "text", "weights", "_version"}
RUN = """
import sys

sys.modules["anomalib_softpatch"] = None  # importing it fails
import timm
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from offered.lightning_model import SoftPatchPlus

root, backbone, *layers = sys.argv[1:]
pre_processor = SoftPatchPlus.configure_pre_processor((64, 64))
model = SoftPatchPlus(backbone, layers, coreset_sampling_ratio=0.1, pre_processor=pre_processor)
data = Folder("bolts", "train/good", root, "test/broken_small", "test/good", num_workers=0)
engine = Engine(default_root_dir="results", accelerator="cpu", logger=False)
engine.fit(model, datamodule=data)
engine.test(model, datamodule=data)
model.model.eval()
image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.save([model.model.memory_bank, model.model.radii, *model.model(image)[::2]], "bank.pt")
"""


def test_it_trains_without_the_plugin(
    mvtec_root: Path, tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A copy of the module and its imports, under another name, builds the plugin's memory bank bit by bit."""
    network = timm.create_model("test_resnet", pretrained=False)
    save_for_hf(network, tmp_path / "weights")
    backbone, root = f"local-dir:{tmp_path / 'weights'}", mvtec_root / "bottle"
    copied = assemble(tmp_path / "offered")
    assert {name.split(".")[1] for name in copied} <= ROOMS

    off = {"ANOMALIB_SOFTPATCH_AUTOLOAD": "0", "PYTHONPATH": str(tmp_path)}
    run_python("-c", RUN, root, backbone, *LAYERS, cwd=tmp_path, env=off)

    pre_processor = SoftPatchPlus.configure_pre_processor((64, 64))
    model = SoftPatchPlus(backbone=backbone, layers=LAYERS, coreset_sampling_ratio=0.1, pre_processor=pre_processor)
    data = Folder("bolts", "train/good", root, "test/broken_small", "test/good", num_workers=0)
    Engine(default_root_dir=tmp_path / "own", accelerator="cpu", logger=False).fit(model, datamodule=data)
    bank, radii, score, anomaly_map = torch.load(tmp_path / "bank.pt")
    assert radii.any()
    assert torch.equal(bank, model.model.memory_bank)
    assert torch.equal(radii, model.model.radii)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        again = model.model.eval()(image)
    assert torch.equal(score, again.pred_score)
    assert torch.equal(anomaly_map, again.anomaly_map)


def assemble(target: Path) -> set[str]:
    """Copy the module and all that it imports of the plugin, under another name; return the modules' names."""
    copied: set[str] = set()
    sources = {"anomalib_softpatch.lightning_model": OFFERED}
    while sources:
        name, source = sources.popitem()
        copied.add(name)
        text = source.read_text(encoding="utf-8")
        place = target.joinpath(*name.split(".")[1:])
        place = place / "__init__.py" if source.name == "__init__.py" else place.with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text.replace("anomalib_softpatch", target.name), encoding="utf-8")
        for imported in imports(text):
            file = PLUGIN.joinpath(*imported.split(".")[1:])
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            if imported not in copied and file.is_file():
                sources[imported] = file
    return copied - {"anomalib_softpatch.lightning_model"}


def imports(text: str) -> set[str]:
    """Return the plugin's modules that a text imports, their packages not counted."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anomalib_softpatch."):
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
