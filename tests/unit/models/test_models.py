# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The models against Anomalib's PatchCore and NumPy in float64, their options, their state, and their errors."""

import copy
import pickle
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils.tiler import Tiler
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from jsonargparse import ArgumentError, ArgumentParser
from lightning import seed_everything
from torch import nn
from torch.utils.data import DataLoader

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.components import DenoisingMemoryBank, MemoryBank
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.components.search import exact
from anomalib_softpatch.components.search import scores as scores_module
from anomalib_softpatch.models import SoftPatchModel

LAYERS = ["layer1", "layer2"]
# SoftPatch+ as in its paper
PAPER = {
    "discriminators": ["lof", "gaussian"],
    "classification_threshold": 0.15,
    "segmentation_threshold": 0.5,
    "soft_weight": True,
    "min_images": 1,
    "neighborhood": 0,
    "score_smoothing": 0,
}


def softpatch_model(**arguments):
    arguments = {"memory_bank_builder": softpatch_bank()} | arguments
    torch.manual_seed(0)
    return SoftPatchModel(LAYERS, "resnet18", pre_trained=False, **arguments)


def softpatch_bank(**arguments):
    return DenoisingMemoryBank(coreset_sampling_ratio=0.02, **arguments)


def two_banks(**arguments):
    return DenoisingMemoryBank(("lof", "gaussian"), (0.15, 0.5), 0.02, **arguments)


def bank_with_radii(**arguments):
    options = {"thresholds": (0.0,), "soft_weight": False, "min_images": 3, "neighborhood": 1}
    return DenoisingMemoryBank(("knn",), **(options | arguments), coreset_sampling_ratio=0.02)


def fit(model, images, seed=0):
    """Fit a model; the seed is for PatchCore, since our models have their own."""
    model.train()
    for batch in images.split(4):
        model(batch)
    if isinstance(model, PatchcoreModel):
        seed_everything(seed, verbose=False)
        model.subsample_embedding(0.1)
    else:
        model.fit()
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("num_neighbors", "smoothing", "indexed"), [(1, 0.0, False), (3, 1.0, False), (1, 1.0, True), (3, 0.0, True)]
)
def test_scores_are_those_of_a_full_search(num_neighbors, smoothing, indexed, monkeypatch):
    """Although few patches are compared with the rows that only the image score needs; also with rows left out."""
    rows = torch.randn(1300, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        6, 192, generator=torch.Generator().manual_seed(1)
    )
    bank, features = rows[:500], rows[500:].view(2, 20, 20, 192) + 0.1
    features[:, 4:8, 5:9] *= 6
    model = softpatch_model(num_neighbors=num_neighbors, score_smoothing=smoothing).eval()
    weights = 1 + torch.rand(500, generator=torch.Generator().manual_seed(2))
    model.set_memory_bank(MemoryBank(bank, weights, None, ((0, 300), (200, 500))))
    some = torch.zeros(500, dtype=torch.bool)
    some[100:250] = True
    shared = torch.zeros(500, dtype=torch.bool)
    shared[200:300] = True
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0 if indexed else 2**40)
    counts = []
    nearest = exact.NearestNeighborSearch.nearest

    def counted(search, queries, *others):
        counts.append(len(queries))
        return nearest(search, queries, *others)

    monkeypatch.setattr(exact.NearestNeighborSearch, "nearest", counted)
    for left_out in (None, some, shared):
        found, compared = [], []
        for smallest in (0, 2**40):
            monkeypatch.setattr(scores_module, "SMALLEST_OWN_PART", smallest)
            counts.clear()
            found.append(model.score(features, (80, 80), left_out))
            compared.append(sum(counts))
        assert compared[1] == 3 * 800
        assert compared[0] < compared[1] or left_out is shared
        torch.testing.assert_close(found[0].pred_score, found[1].pred_score, rtol=1e-5, atol=0)
        torch.testing.assert_close(found[0].anomaly_map, found[1].anomaly_map, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("num_neighbors", "seed"), [(1, 0), (9, 3)])
def test_is_patchcore_without_denoising(images, num_neighbors, seed):
    """Same coreset given the same seed; same scores, and maps given the same upsampling."""
    builder = DenoisingMemoryBank(thresholds=(0.0,), soft_weight=False, seed=seed)
    ours = softpatch_model(memory_bank_builder=builder, num_neighbors=num_neighbors, upsampling="nearest")
    theirs = PatchcoreModel(LAYERS, "resnet18", pre_trained=False, num_neighbors=num_neighbors)
    theirs.feature_extractor.load_state_dict(ours.feature_extractor.backbone.state_dict())
    fit(ours, images)
    fit(theirs, images, seed)
    assert torch.equal(ours.memory_bank, theirs.memory_bank)
    unseen = torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    actual, expected = ours(unseen), theirs(unseen)
    torch.testing.assert_close(actual.pred_score, expected.pred_score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "builder",
    [
        softpatch_bank(),
        two_banks(soft_weight="lof"),
        bank_with_radii(),
        bank_with_radii(thresholds=(0.0, 0.3), soft_weight=True),
    ],
)
def test_scores_equal_numpy(images, builder):
    """Distance to the nearest patch of a bank times its weight: first bank for the image score, last for the map.

    The distance is the mutual reachability distance where patches have support radii.
    """
    model = fit(softpatch_model(memory_bank_builder=builder), images)
    unseen = torch.randn(3, 3, 64, 96)
    features = model.extract(unseen)
    queries = features.flatten(1, 2).double().numpy()
    bank, weights = model.memory_bank.double().numpy(), model.weights.double().numpy()
    radii = model.radii.double().numpy()
    assert (radii > 0).all() if builder.has_radii else (radii == 0).all()

    def patch_scores(start, stop):
        distances = np.linalg.norm(queries[:, :, None] - bank[None, None, start:stop], axis=3)
        distances = np.maximum(distances, radii[start:stop])
        return distances.min(axis=2) * weights[start:stop][distances.argmin(axis=2)]

    output = model(unseen)
    np.testing.assert_allclose(output.pred_score, patch_scores(*model.bank_ranges[0]).max(axis=1), rtol=1e-5)
    grid = torch.tensor(patch_scores(*model.bank_ranges[-1])).view(3, 1, *features.shape[1:3]).float()
    resized = nn.functional.interpolate(grid, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(output.anomaly_map, model.anomaly_map_generator.blur(resized), rtol=1e-4, atol=1e-5)


def test_deterministic(images):
    first, second, other = (
        fit(softpatch_model(memory_bank_builder=softpatch_bank(seed=seed)), images[:4]) for seed in (3, 3, 4)
    )
    assert torch.equal(first.memory_bank, second.memory_bank)
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.memory_bank, other.memory_bank)


@pytest.mark.parametrize("builder", [two_banks(), bank_with_radii()])
def test_state_survives(images, builder):
    trained = fit(softpatch_model(memory_bank_builder=builder), images)
    restored = softpatch_model(memory_bank_builder=builder).eval()
    restored.load_state_dict(trained.state_dict())
    assert restored.bank_ranges == trained.bank_ranges
    trained(images)  # makes a search, which copies do not get
    for other in (restored, copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert other._search is None
        assert torch.equal(other.radii, trained.radii)
        assert torch.equal(other(images).pred_score, trained(images).pred_score)


def test_search_follows_the_banks(images, monkeypatch):
    """The same banks are indexed once, and again after they are replaced or changed in place. Old ones are dropped."""
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0)
    model = fit(softpatch_model(memory_bank_builder=bank_with_radii()), images)
    features = model.extract(images[:2])

    def scores(model):
        return model.score(features.to(model.memory_bank.dtype), (64, 96)).pred_score

    scores(model)
    search = model._search
    scores(model)
    assert model._search is search
    for change in (
        lambda: model.radii.mul_(1.5),
        lambda: model.memory_bank.mul_(1.5),
        lambda: setattr(model, "memory_bank", model.memory_bank / 2),
        model.double,
        lambda: model.set_memory_bank(MemoryBank(model.memory_bank[:9], model.weights[:9], None, ((0, 9),))),
    ):
        change()
        assert torch.equal(scores(model), scores(copy.deepcopy(model)))
        assert model._search is not search
        assert model._search.bank.features is model.memory_bank
        search = model._search


def test_not_fitted():
    with pytest.raises(RuntimeError, match="memory bank is empty"):
        softpatch_model().eval()(torch.randn(1, 3, 64, 64))


def test_different_sizes():
    model = softpatch_model().train()
    model(torch.randn(2, 3, 64, 64))
    with pytest.raises(ValueError, match="all training images must reach the model at one size"):
        model(torch.randn(2, 3, 64, 96))


def test_tiles(images):
    """A tiled image is scored as its tiles are, put together again."""
    model = softpatch_model()
    model.tiler = Tiler(tile_size=32, stride=32)
    fit(model, images)
    assert model(images).anomaly_map.shape == (8, 1, 64, 96)
    tiles = images[:1, :, :32, 32:64]
    torch.testing.assert_close(model.extract(images)[:1, :8, 8:16], model.feature_extractor(tiles))


@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lof_k": 0}, "lof_k"),
        ({"coreset_sampling_ratio": 1.5}, "coreset_sampling_ratio"),
        ({"num_neighbors": 0}, "num_neighbors"),
        ({"precision": "int8"}, "Unknown precision 'int8': choose from float32, float16, bfloat16"),
        ({"layers": ["layer7"]}, "layer7"),
        ({"memory_budget": -1.0}, "memory_budget"),
        ({"patch_embedding": "flat"}, "patch_embedding"),
        ({"seed": -1}, "seed=-1 must be a whole number of 0 or more"),
    ],
)
def test_bad_arguments(model_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        model_class(**({"backbone": "resnet18", "pre_trained": False} | arguments))


@pytest.mark.parametrize(
    ("model_class", "arguments", "message"),
    [
        (SoftPatch, {"threshold": 1.0}, r"thresholds=1\.0 must be"),
        (SoftPatch, {"discriminator": "svm"}, "Unknown discriminator 'svm'"),
        (SoftPatchPlus, {"segmentation_threshold": -0.5}, r"thresholds=-0\.5 must be"),
        (
            SoftPatchPlus,
            {"classification_threshold": "most"},
            "thresholds='most' must be a share of at least 0 and below 1",
        ),
        (SoftPatchPlus, {"discriminators": []}, "different names and at least one"),
        (SoftPatchPlus, {"discriminators": ["lof", "lof"]}, "different names and at least one"),
        (SoftPatchPlus, {"discriminators": "lof"}, "discriminators must be a list of names, got 'lof'"),
        (SoftPatchPlus, {"task": "detection"}, "Unknown task 'detection'"),
    ],
)
def test_bad_arguments_of_one_model(model_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        model_class(backbone="resnet18", pre_trained=False, **arguments)


@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
def test_unknown_option(model_class):
    with pytest.raises(TypeError, match="lof_n"):
        model_class(backbone="resnet18", pre_trained=False, lof_n=5)


@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
def test_the_command_line_knows_all_options(model_class):
    """Also those of the memory bank and of the fit, with their help, types and defaults."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(model_class, "model")
    text = " ".join(parser.format_help().split())
    plus = model_class is SoftPatchPlus
    min_images = "auto" if plus else "1"
    for option, explanation, default in (
        ("lof_k LOF_K", "Neighbors of the local outlier factor", "6"),
        ("coreset_sampling_ratio", "Size of each bank as a share of ALL training patches", "0.1"),
        ("min_images", "How many training images must show something for it", min_images),
        ("memory_budget", "GiB of features to hold in memory while training", "null"),
        ("search {exact,faiss}", "How memory banks are searched on a CPU", "exact"),
        ("seed SEED", "Seed of every random number of a fit", "0"),
    ):
        found = re.search(rf"--model\.{option}.*?{explanation}.*?\(type: [^)]*, default: ([^)]*)\)", text)
        assert found, option
        assert found.group(1) == default
    assert "torch.nn.Identity" not in text, "a list of all modules there are, thousands of lines, hides the options"
    assert ":class:" not in text
    defaults = parser.get_defaults().model
    assert (defaults.backbone, defaults.neighborhood) == ("wide_resnet50_2", int(plus))
    assert defaults.soft_weight is not plus
    assert "thresholds" not in defaults
    assert ("discriminators" in defaults) == plus
    with pytest.raises(ArgumentError, match="lof_k"):
        parser.parse_args(["--model.lof_k=many"])
    assert parser.parse_args(["--model.lof_k=9", "--model.neighborhood=image"]).model.lof_k == 9
    for text, value in (("auto", "auto"), ("3", 3), ("0.1", 0.1)):
        assert parser.parse_args([f"--model.min_images={text}"]).model.min_images == value
    with pytest.raises(ArgumentError, match="min_images"):
        parser.parse_args(["--model.min_images=many"])


def engine(folder):
    return Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)


def lightning_model(model_class, **arguments):
    defaults = {"backbone": "resnet18", "layers": LAYERS, "pre_trained": False, "coreset_sampling_ratio": 0.005}
    pre_processor = model_class.configure_pre_processor((64, 64))
    if not issubclass(model_class, Patchcore):
        defaults["noise_report"] = False
    return model_class(**(defaults | {"visualizer": False, "pre_processor": pre_processor} | arguments))


@pytest.fixture
def datamodule(mvtec_root):
    return MVTecAD(root=mvtec_root, category="bottle", num_workers=0)


@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
def test_engine_and_checkpoint(model_class, datamodule, tmp_path):
    """Fit, test, and predict from the checkpoint, which holds plain data only."""
    trained, runner = lightning_model(model_class, noise_report=True), engine(tmp_path)
    runner.fit(trained, datamodule=datamodule)
    metrics = runner.test(trained, datamodule=datamodule, verbose=False)[0]
    assert metrics["image_AUROC"] == 1.0  # black squares on gray noise
    checkpoint = runner.trainer.checkpoint_callback.best_model_path
    assert torch.load(checkpoint, weights_only=True)["state_dict"]
    restored = engine(tmp_path)
    model = lightning_model(model_class)
    before = restored.predict(model, datamodule=datamodule, ckpt_path=checkpoint)
    after = runner.predict(trained, datamodule=datamodule)
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(first.pred_score, second.pred_score)
        torch.testing.assert_close(first.anomaly_map, second.anomaly_map)
    assert torch.equal(model.model.memory_bank, trained.model.memory_bank)


NON_DEFAULTS = {
    "lof_k": 3,
    "coreset_sampling_ratio": 0.02,
    "min_images": 2,
    "neighborhood": 1,
    "max_references": 20,
    "soft_weight": False,
    "num_neighbors": 2,
    "patch_embedding": "unfold",
    "precision": "bfloat16",
    "memory_budget": 0.5,
    "noise_report": False,
    "search": "faiss",
    "seed": 7,
}


@pytest.mark.parametrize(
    ("model_class", "own"),
    [
        (SoftPatch, {"discriminator": "gaussian", "threshold": 0.3}),
        (SoftPatchPlus, {"discriminators": ["nearest", "lof"], "classification_threshold": 0.1, "task": "both"}),
    ],
)
def test_options_come_back_from_a_checkpoint(model_class, own, datamodule, tmp_path):
    """They are plain data, the model's own options and no others."""
    trained, runner = lightning_model(model_class, **NON_DEFAULTS, **own), engine(tmp_path)
    runner.fit(trained, datamodule=datamodule)
    checkpoint = runner.trainer.checkpoint_callback.best_model_path
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert (NON_DEFAULTS | own).items() <= dict(saved).items()
    parser = ArgumentParser()
    parser.add_class_arguments(model_class, "model")
    assert saved.keys() <= vars(parser.get_defaults().model).keys()
    restored = model_class.load_from_checkpoint(checkpoint)
    assert asdict(restored.model.memory_bank_builder) == asdict(trained.model.memory_bank_builder)
    assert dict(restored.hparams) == dict(trained.hparams)
    assert restored.noise_report is trained.noise_report
    assert restored.model.feature_extractor.dtype == torch.bfloat16
    for name in ("num_neighbors", "bank_ranges"):
        assert getattr(restored.model, name) == getattr(trained.model, name)
    assert restored.model.feature_store.memory_budget == 2**29
    assert (trained.model.radii > 0).all()
    for name, tensor in trained.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, restored.state_dict()[name]), name


def test_module_as_backbone(datamodule, tmp_path):
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
    runner = engine(tmp_path)
    runner.fit(lightning_model(SoftPatch, backbone=backbone, layers=["1"]), datamodule=datamodule)
    checkpoint = runner.trainer.checkpoint_callback.best_model_path
    restored = SoftPatch.load_from_checkpoint(checkpoint, backbone=backbone, layers=["1"])
    assert restored.model.bank_ranges


def test_testing_before_fitting(datamodule, tmp_path):
    with pytest.raises(RuntimeError, match="train the model"):
        engine(tmp_path).test(lightning_model(SoftPatch), datamodule=datamodule)


def test_validating_before_fitting(datamodule, tmp_path):
    with pytest.raises(ValueError, match="no training image reached the model"):
        engine(tmp_path).validate(lightning_model(SoftPatch), datamodule=datamodule)


def test_broken_image_is_named(datamodule, tmp_path):
    model = lightning_model(SoftPatch)
    with torch.no_grad():
        next(model.model.feature_extractor.parameters()).fill_(float("inf"))
    with pytest.raises(ValueError, match=r"NaN or infinite features .*bottle/train/good/00\d\.png"):
        engine(tmp_path).fit(model, datamodule=datamodule)


def test_one_task_one_bank(images):
    for task, threshold in (("classification", 0.15), ("segmentation", 0.5)):
        model = lightning_model(SoftPatchPlus, task=task, **PAPER)
        fit(model.model, images)
        assert len(model.model.bank_ranges) == 1
        assert model.model.denoising.kept.float().mean() == pytest.approx(1 - threshold, abs=0.01)


def test_one_discriminator_is_enough():
    """The thresholds on the command line are numbers."""
    model = lightning_model(SoftPatchPlus, discriminators=["nearest"], segmentation_threshold=0.4)
    assert model.model.memory_bank_builder.discriminators == ("nearest",)
    assert model.model.memory_bank_builder.thresholds == (0.0, 0.4)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SoftPatchPlus, "model")
    parsed = parser.parse_args(["--model.classification_threshold=0.2"]).model
    assert (parsed.classification_threshold, parsed.segmentation_threshold) == (0.2, 0.0)
    assert list(parsed.discriminators) == ["knn"]
    for word in ("most", "auto"):
        with pytest.raises(ArgumentError, match="segmentation_threshold"):
            parser.parse_args([f"--model.segmentation_threshold={word}"])


@pytest.mark.parametrize(
    ("count", "equal", "min_images"),
    [(2, False, "auto"), (2, True, "auto"), (2, False, 100), (3, False, 2), (10, False, 0.1), (10, True, 100)],
)
def test_soft_patch_plus_on_few_images(count, equal, min_images):
    """Even with few or equal images, banks, radii, scores, maps and thresholds are finite."""
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if equal:
        images[:] = images[0]
    ratio = 1.0 if equal else 0.05
    model = lightning_model(SoftPatchPlus, coreset_sampling_ratio=ratio, min_images=min_images)
    model.model.train()(images)
    model.model.fit((64, 64))
    inner, result = model.model.eval(), model.model.denoising
    assert result.scores.fused.isfinite().all()
    assert len(result.shares) == len(result.kept) == 2
    assert inner.memory_bank.isfinite().all()
    assert inner.weights.isfinite().all()
    assert (inner.radii == 0).all() if equal else (inner.radii > 0).all()
    assert inner.radii.isfinite().all()
    for scores in (inner.out_of_bag.image_scores, inner.out_of_bag.map_peaks):  # infinite for the only image in a bank
        assert np.isfinite(false_alarm_threshold(scores, 0.05))
    output = inner(torch.cat((images[:1], torch.zeros(1, 3, 64, 64))))
    assert output.pred_score.isfinite().all()
    assert output.anomaly_map.isfinite().all()
    assert output.pred_score[1] > output.pred_score[0]
    if equal:
        assert output.pred_score[0] < 1e-2 * output.pred_score[1]


def test_learns_as_patchcore_does(mvtec_root, tmp_path):
    """Also through the engine, if PatchCore gets the images by path and is seeded right before its selection."""

    class InOrder(MVTecAD):
        def train_dataloader(self):
            return DataLoader(self.train_data, batch_size=3, collate_fn=self.train_data.collate_fn)

    class ReseededPatchcore(Patchcore):
        def fit(self):
            seed_everything(5, verbose=False)
            super().fit()

    ours = lightning_model(SoftPatch, threshold=0, soft_weight=False, seed=5)
    theirs = lightning_model(ReseededPatchcore)
    theirs.model.feature_extractor.load_state_dict(ours.model.feature_extractor.backbone.state_dict())
    for model in (ours, theirs):
        engine(tmp_path).fit(model, datamodule=InOrder(root=mvtec_root, category="bottle", num_workers=0))
    assert torch.equal(ours.model.memory_bank, theirs.model.memory_bank)


def fitted(folder, datamodule, global_seed, **options):
    seed_everything(global_seed, verbose=False)
    model = lightning_model(SoftPatch, **options)
    engine(folder).fit(model, datamodule=datamodule)
    return model.model


def test_equal_options_give_equal_banks(mvtec_root, tmp_path):
    """Bit by bit, including the untrained backbone, whatever the global generators and the shuffling loader draw."""
    orders = []

    class Watched(MVTecAD):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            orders[-1].extend(batch.image_path)
            return batch

    def fit_with(global_seed, **options):
        orders.append([])
        return fitted(tmp_path, Watched(root=mvtec_root, category="bottle", num_workers=0), global_seed, **options)

    first, second, other = fit_with(1), fit_with(2), fit_with(1, seed=1)
    assert orders[0][:8] != orders[1][:8]
    assert sorted(orders[0]) == sorted(orders[1])
    for name, tensor in first.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, second.state_dict()[name]), name
    assert first.bank_ranges == second.bank_ranges
    weight, other_weight = (next(model.feature_extractor.parameters()) for model in (first, other))
    assert not torch.equal(weight, other_weight)
    assert not torch.equal(first.memory_bank, other.memory_bank)


def test_global_generators_are_left_alone(images):
    """By the untrained weights of a backbone and by a fit."""

    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = state()
    model = lightning_model(SoftPatch)
    model.model.train()(images)
    model.model.fit()
    assert state() == before


def test_order_of_the_images_does_not_matter(mvtec_root, tmp_path):
    """The same seed gives the same bank from other batches in another order, and whatever the loader draws."""
    banks = []
    for batch_size in (2, 5):
        datamodule = MVTecAD(root=mvtec_root, category="bottle", train_batch_size=batch_size, num_workers=0)
        banks.append(fitted(tmp_path, datamodule, global_seed=batch_size))
    assert len(banks[0].denoising.keys) == 8
    assert banks[0].denoising.keys == tuple(sorted(banks[1].denoising.keys))
    torch.testing.assert_close(banks[0].memory_bank, banks[1].memory_bank)
    torch.testing.assert_close(banks[0].weights, banks[1].weights)


def test_copies_leave_the_training_images_behind(images):
    model = fit(softpatch_model(), images)
    copied = copy.deepcopy(model)
    assert model.denoising is not None
    assert copied.denoising is None
    assert torch.equal(copied(images).pred_score, model(images).pred_score)
