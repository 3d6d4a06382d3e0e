# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The contract with Anomalib, Lightning, PyTorch and timm: every part that they do not promise and that is used here.

:data:`PARTS` names them. If one is missing or takes other arguments, a test fails and names what breaks. If one is used
and not named, a test fails, too. Before a new minor version of Anomalib is allowed, run this file with it.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import anomalib.models
import pandas as pd
import pytest
import timm
import torch
from anomalib.cli import AnomalibCLI, pipelines
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.engine import Engine
from anomalib.engine.plugins import AnomalibCheckpointIO
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.models.components import AnomalibModule, MemoryBankMixin, feature_extractors
from anomalib.models.components.base.export_mixin import ExportMixin
from anomalib.pipelines import Benchmark
from anomalib.pipelines.benchmark.job import BenchmarkJob
from anomalib.pipelines.components.base import pipeline
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import spec_to_transform, transform_to_spec
from anomalib.utils import logging as anomalib_logging
from lightning.pytorch.strategies import DDPStrategy, Strategy
from packaging.requirements import Requirement
from torchvision.transforms.v2 import Pad

import anomalib_softpatch

TESTED = "2.7"  # the newest minor version of Anomalib that this file has been run with
PACKAGE = Path(anomalib_softpatch.__file__).parent
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Part:
    """A part of another library that is not promised to stay.

    Attributes:
        name: What it is called; the last part is the name that is searched for in the sources.
        get: Returns it.
        expected: Names of its parameters if it is called or overridden, otherwise a check of its value.
        breaks: What would not work here without it.
    """

    name: str
    get: Callable[[], Any]
    expected: str | Callable[[Any], object]
    breaks: str

    @property
    def searched(self) -> str:
        """The name that the sources use."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        return self.name


def in_class(owner: type, name: str) -> Callable[[], Any]:
    return lambda: inspect.getattr_static(owner, name)


def in_module(module: ModuleType, name: str) -> Callable[[], Any]:
    return lambda: getattr(module, name)


def names_in(function: Callable) -> tuple[str, ...]:
    """Names of the attributes that a function uses."""
    return inspect.unwrap(function).__code__.co_names


def dataset() -> AnomalibDataset:
    class Dataset(AnomalibDataset):
        pass

    own = Dataset()
    own._samples = pd.DataFrame({"image_path": ["b", "a"]})
    return own


def memory_bank() -> MemoryBankMixin:
    class Model(MemoryBankMixin):
        def fit(self) -> None:
            pytest.fail("fitted again")

    model = Model()
    assert model._is_fitted.tolist() == [False]
    model._is_fitted = torch.tensor([True])
    model.on_validation_start()
    model.on_train_epoch_end()
    return model


def versions_of_a_tensor() -> tuple[int, int]:
    tensor = torch.zeros(2)
    before = tensor._version
    tensor[0] = 1
    return before, tensor._version


def thresholds() -> tuple[float, float]:
    """Thresholds that users see of an image and of a pixel, once those behind them are set."""
    processor = PostProcessor()
    assert processor._image_threshold.isnan()
    processor._image_threshold.fill_(2.0)
    assert processor.image_threshold == processor.pixel_threshold == 2  # the image's counts where no other is set
    processor._pixel_threshold.fill_(3.0)
    return processor.image_threshold.item(), processor.pixel_threshold.item()


def configuration() -> dict[str, Any]:
    class Own(PostProcessor):
        extra = 7

        @property
        def _checkpoint_config_keys(self) -> tuple[str, ...]:
            return (*super()._checkpoint_config_keys, "extra")

    return Own().checkpoint_config()


def metric_for_labels(name: str) -> Callable[[], Any]:
    return lambda: getattr(PostProcessor(), name)


PARTS = [
    # PyTorch's modules
    Part(
        "torch.nn.Module._load_from_state_dict",
        in_class(torch.nn.Module, "_load_from_state_dict"),
        "self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs",
        "Checkpoints of version 0.2, which have no support radii, do not load.",
    ),
    # Anomalib's engine
    Part(
        "anomalib.engine.Engine._setup_trainer",
        in_class(Engine, "_setup_trainer"),
        "self, model",
        "Our models train on all GPUs of the machine instead of one unless the user asks for more.",
    ),
    Part(
        "anomalib.engine.Engine._cache",
        lambda: Engine(devices=3)._cache.args,
        lambda args: args["devices"] == 3,
        "The number of devices that the user asked for is not found.",
    ),
    Part(
        "anomalib.engine.plugins.AnomalibCheckpointIO",
        lambda: AnomalibCheckpointIO.__init__,
        "self, extra_safe_globals",
        "Checkpoints are not written whole, and those of a GPU do not load without one.",
    ),
    Part(
        "lightning.pytorch.strategies.Strategy.checkpoint_io",
        in_class(Strategy, "checkpoint_io"),
        lambda found: found.fset is not None,
        "Checkpoints are not written whole, and those of a GPU do not load without one.",
    ),
    Part(
        "lightning.pytorch.strategies.Strategy.model",
        in_class(Strategy, "model"),
        lambda found: found.fset is not None,
        "A distributed fit waits for gradients that never come.",
    ),
    Part(
        "lightning.pytorch.strategies.DDPStrategy.configure_ddp",
        lambda: names_in(DDPStrategy.setup),
        lambda names: names.index("model_to_device") < names.index("configure_ddp"),
        "A distributed fit of a frozen backbone is refused, and ranks have other untrained weights than rank 0.",
    ),
    # Anomalib's models
    Part(
        "anomalib.models.components.MemoryBankMixin._is_fitted",
        lambda: memory_bank()._is_fitted,
        lambda found: found.all(),
        "A model with a loaded memory bank is fitted again, without images, when it is validated.",
    ),
    Part(
        "anomalib.models.components.base.export_mixin.ExportMixin._compress_ov_model",
        in_class(ExportMixin, "_compress_ov_model"),
        "self, model, compression_type, datamodule, metric, task, max_drop",
        "Eight-bit exports compress the search too, and scores lose their order without any error.",
    ),
    Part(
        "anomalib.models.components.base.export_mixin.ExportMixin.to_openvino",
        lambda: names_in(ExportMixin.to_openvino),
        lambda names: "_compress_ov_model" in names,
        "Eight-bit exports compress the search too, and scores lose their order without any error.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor",
        lambda: PostProcessor().state_dict().keys(),
        lambda names: names >= {"_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_max"},
        "A memory bank's file has no thresholds, or missing ones are not noticed.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor._image_threshold",
        thresholds,
        lambda found: found == (2, 3),
        "No threshold is found without labeled defects, so that no image is called anomalous.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor._pixel_threshold",
        thresholds,
        lambda found: found == (2, 3),
        "No threshold is found without labeled defects, so that no pixel is called anomalous.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor._image_threshold_metric",
        metric_for_labels("_image_threshold_metric"),
        lambda found: isinstance(found, F1AdaptiveThreshold) and not found.update_called,
        "A validation without labeled defects warns of an F1 that it cannot have.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor._pixel_threshold_metric",
        metric_for_labels("_pixel_threshold_metric"),
        lambda found: isinstance(found, F1AdaptiveThreshold) and not found.update_called,
        "A validation without labeled defects warns of an F1 that it cannot have.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor.on_validation_epoch_end",
        lambda: names_in(PostProcessor.on_validation_epoch_end),
        lambda names: {"_image_threshold_metric", "_pixel_threshold_metric", "update_called"} <= set(names),
        "Normal validation images set the threshold to the highest score among them.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor._normalize",
        in_class(PostProcessor, "_normalize"),
        lambda found: ", ".join(inspect.signature(found.__func__).parameters) == "preds, norm_min, norm_max, threshold",
        "Scores are cut at those of the validation, and all larger ones are alike.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor.forward",
        lambda: names_in(PostProcessor.forward),
        lambda names: "_normalize" in names,
        "Exported models cut scores at those of the validation, and all larger ones are alike.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor.normalize_batch",
        lambda: names_in(PostProcessor.normalize_batch),
        lambda names: "_normalize" in names,
        "Scores are cut at those of the validation, and all larger ones are alike.",
    ),
    Part(
        "anomalib.post_processing.PostProcessor._checkpoint_config_keys",
        configuration,
        lambda found: found["extra"] == 7 and "image_sensitivity" in found,
        "A model from a checkpoint loses the options of its threshold.",
    ),
    Part(
        "anomalib.pre_processing.PreProcessor.export_transform",
        lambda: names_in(PreProcessor.forward),
        lambda names: "export_transform" in names,
        "Loaded models and exported files resize images in another way than the fit.",
    ),
    Part(
        "anomalib.pre_processing.utils._transform_registry",
        lambda: spec_to_transform(transform_to_spec(Pad(3))),
        lambda found: isinstance(found, Pad) and found.padding == 3,
        "A checkpoint loses a pre-processor that pads.",
    ),
    Part(
        "anomalib.models.components.feature_extractors.timm._disable_pos_embed_antialiasing",
        in_module(feature_extractors.timm, "_disable_pos_embed_antialiasing"),
        "",
        "Exported vision transformers have other features at image sizes that they were not trained at.",
    ),
    Part(
        "timm.create_model(..., features_only=True).feature_info",
        lambda: timm.create_model("test_resnet", features_only=True).feature_info,
        lambda found: [each["module"] for each in found.info][1:] == LAYERS,
        "The layers of a backbone are not known.",
    ),
    Part(
        "timm.create_model(..., features_only=True).model.forward_intermediates",
        lambda: timm.create_model("vit_tiny_patch16_224", features_only=True).model.forward_intermediates,
        lambda found: (
            {"indices", "norm", "stop_early", "output_fmt", "intermediates_only"}
            <= set(inspect.signature(found).parameters)
        ),
        "Transformers are not distinguished from other networks, or give no features.",
    ),
    # Anomalib's data
    Part(
        "anomalib.data.AnomalibDataModule._setup",
        in_class(AnomalibDataModule, "_setup"),
        "self, _stage",
        "No noise is injected.",
    ),
    Part(
        "anomalib.data.AnomalibDataModule._create_test_split",
        in_class(AnomalibDataModule, "_create_test_split"),
        "self",
        "The test set is split a second time, after the wrapped datamodule has done so.",
    ),
    Part(
        "anomalib.data.AnomalibDataModule._create_val_split",
        in_class(AnomalibDataModule, "_create_val_split"),
        "self",
        "The validation set is split a second time, after the wrapped datamodule has done so.",
    ),
    Part(
        "anomalib.data.AnomalibDataModule.setup",
        lambda: names_in(AnomalibDataModule.setup),
        lambda names: {"_setup", "_create_test_split", "_create_val_split"} <= set(names),
        "No noise is injected, or the sets are split a second time.",
    ),
    Part(
        "anomalib.data.AnomalibDataset._samples",
        lambda: list(dataset().samples["image_path"]),
        lambda found: found == ["b", "a"],
        "Training images have other numbers in every process, because their order depends on a temporary folder.",
    ),
    # Anomalib's commands
    Part(
        "anomalib.cli.pipelines.PIPELINE_REGISTRY",
        in_module(pipelines, "PIPELINE_REGISTRY"),
        lambda found: issubclass(found["benchmark"], Benchmark),
        "The command `anomalib benchmark` cannot run our models.",
    ),
    Part(
        "anomalib.cli.AnomalibCLI.before_instantiate_classes",
        lambda: names_in(AnomalibCLI.__init__),
        lambda names: (
            names.index("parse_args") < names.index("before_instantiate_classes") < names.index("instantiate_classes")
        ),
        "`anomalib predict` and `anomalib export` need the options again that the checkpoint holds.",
    ),
    Part(
        "anomalib.models.ALLOWED_MODULES",
        in_module(anomalib.models, "ALLOWED_MODULES"),
        lambda found: "anomalib.models" in found,
        "get_model refuses the dotted path of our models.",
    ),
    Part(
        "anomalib.models.components.AnomalibModule",
        lambda: anomalib.models.list_models("pascal"),
        lambda found: found == {each.__name__ for each in AnomalibModule.__subclasses__()},
        "Our models are not found by their bare names.",
    ),
    Part(
        "anomalib.pipelines.Benchmark.run",
        in_class(Benchmark, "run"),
        "self, args",
        "Benchmarks without a class of ours do not run.",
    ),
    Part(
        "anomalib.pipelines.benchmark.job.BenchmarkJob",
        lambda: BenchmarkJob.__init__,
        "self, accelerator, model, datamodule, seed, flat_cfg",
        "The command `anomalib benchmark` cannot run our models.",
    ),
    Part(
        "anomalib.pipelines.benchmark.job.BenchmarkJob.run",
        in_class(BenchmarkJob, "run"),
        "self, task_id",
        "The command `anomalib benchmark` cannot run our models.",
    ),
    Part(
        "anomalib.pipelines.components.base.pipeline.log_file",
        in_module(pipeline, "log_file"),
        lambda found: found.endswith(".log"),
        "A benchmark has nowhere to log to.",
    ),
    Part(
        "anomalib.utils.logging.hide_output",
        in_module(anomalib_logging, "hide_output"),
        "func",
        "Output of models tears a benchmark's progress bar.",
    ),
    # PyTorch
    Part(
        "torch.Tensor._version",
        versions_of_a_tensor,
        lambda found: found[0] < found[1],
        "After a memory bank is changed in place, the search continues in the old one.",
    ),
]
LAYERS = ["layer1", "layer2", "layer3", "layer4"]

# Names with an underscore that are public: the documentation of Python's named tuples names them
PUBLIC = {"_asdict", "_fields", "_is_protocol", "_is_runtime_protocol", "_replace"}  # and those of protocols


def test_documents_say_what_would_make_each_part_unnecessary() -> None:
    text = (ROOT / "docs" / "upstream.md").read_text()
    assert [str(part) for part in PARTS if not re.search(rf"`[^`]*\b{part.searched}\b", text)] == []


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_part_is_as_it_was(part: Part) -> None:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("anomalib", "lightning", "timm", "torch"))
    broken = f"{part.name} is not as it was ({libraries}). {part.breaks}"
    try:
        found = part.get()
        if isinstance(part.expected, str):
            as_it_was = ", ".join(inspect.signature(found).parameters) == part.expected
        else:
            as_it_was = part.expected(found)
    except Exception as error:
        pytest.fail(f"{broken} ({type(error).__name__}: {error})")
    assert as_it_was, f"{broken} It is: {found}"


def test_anomalib_is_capped_below_the_first_version_that_is_not_tested() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    requirements = [Requirement(found) for found in re.findall(r'"(anomalib(?:\[\w+\])?[<>=][^"]*)"', text)]
    assert requirements
    major, minor = map(int, TESTED.split("."))
    for requirement in requirements:
        assert f"{TESTED}.0" in requirement.specifier
        assert f"{major}.{minor + 1}.0" not in requirement.specifier, requirement
    assert version("anomalib").startswith(f"{TESTED}."), "run and repair this file, then raise TESTED and the cap"


# The search for parts that the table does not name


def private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def private_uses(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Lines and names of private parts of something else; ``own`` are those that objects of ours have."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            on_self = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            names = [] if on_self and node.attr in own else [node.attr]
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("anomalib_softpatch"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [name for alias in node.names for name in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "setattr", "hasattr", "delattr"}:
            names = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
        yield from ((node.lineno, name) for name in names if private(name))


def defined(tree: ast.Module) -> set[str]:
    """Names that a module defines: functions, classes, variables, and what is set on self or cls."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in {"self", "cls"}
        ):
            names.add(node.attr)
    return names


def uses() -> Iterator[tuple[str, str]]:
    """Places in the sources and the names of private parts that are used, or overridden, there."""
    # The table's names are not ours, even if we set them
    own = set().union(*(defined(tree) for _, tree in sources())) - {part.searched for part in PARTS}
    for path, tree in sources():
        yield from ((f"{path}:{line}", name) for line, name in private_uses(tree, own))
    for module in pkgutil.walk_packages([str(PACKAGE)], "anomalib_softpatch."):
        for owner in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(owner) or not owner.__module__.startswith("anomalib_softpatch."):
                continue
            if issubclass(owner, Enum):  # whose private parts Python makes
                continue
            bases = [vars(base) for base in owner.__mro__ if not base.__module__.startswith("anomalib_softpatch.")]
            theirs = {name for base in bases for name in base if private(name) and not name.startswith("_abc_")}
            for base in owner.__mro__:
                if base.__module__.startswith("anomalib_softpatch."):
                    yield from ((base.__qualname__, name) for name in theirs & vars(base).keys())


def test_every_private_part_is_in_the_table() -> None:
    known = {part.searched for part in PARTS} | PUBLIC
    unknown = sorted({f"{name} ({place})" for place, name in uses() if name not in known})
    assert not unknown, f"use a public part, or name in PARTS what breaks without it: {', '.join(unknown)}"


def test_every_private_part_of_the_table_is_used() -> None:
    unused = {part.searched for part in PARTS if private(part.searched)} - {name for _, name in uses()}
    assert not unused, f"no longer used, so remove from PARTS: {sorted(unused)}"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("trainer._secret()", ["_secret"]),
        ("class A:\n  def f(self): return self._theirs", ["_theirs"]),
        ("class A:\n  def __init__(self): self._own = 1\n  def f(self): return self._own", []),
        ("class A:\n  def _own(self): ...\n  def f(self): return self._own()", []),
        ("from anomalib.metrics import _AUPRO", ["_AUPRO"]),
        ("import lightning._private", ["_private"]),
        ("from lightning._private.thing import public", ["_private"]),
        ("from anomalib_softpatch._version import __version__", []),
        ("getattr(model, '_hidden', None)", ["_hidden"]),
        ("model.__dict__", []),
    ],
)
def test_the_search_finds_private_parts(source: str, names: list[str]) -> None:
    tree = ast.parse(source)
    assert [name for _, name in private_uses(tree, defined(tree))] == names
