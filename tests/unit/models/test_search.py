# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The option `search` of the models: approximate in torch, exact in exported files."""

import copy
import logging
import sys

import pytest
import torch
from anomalib.data import MVTecAD
from test_models import engine, lightning_model

from anomalib_softpatch import SoftPatch, SoftPatchPlus, load_memory_bank, load_model, save_memory_bank
from anomalib_softpatch.anomalib_command.last_words import bad_input
from anomalib_softpatch.components import NearestNeighborSearch
from anomalib_softpatch.components.search import approximate as module
from anomalib_softpatch.components.search import exact as exact_module
from anomalib_softpatch.components.search.approximate import ApproximateIndex, ApproximateSearch

MODELS = [SoftPatch, SoftPatchPlus]


@pytest.fixture(autouse=True)
def small_index(monkeypatch):
    """Use an approximate index of small banks, and one that misses neighbors."""
    monkeypatch.setattr(module, "SMALLEST_BANK", 256)
    monkeypatch.setattr(exact_module, "SMALLEST_INDEX", 0)
    monkeypatch.setattr(module, "PROBED", 0)
    monkeypatch.setattr(module, "LARGEST_EXCESS", 1.0)


@pytest.fixture(scope="module")
def unseen():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def train(model_class, root, folder, **options):
    model, runner = lightning_model(model_class, coreset_sampling_ratio=0.3, **options), engine(folder)
    runner.fit(model, datamodule=MVTecAD(root=root, category="bottle", num_workers=0))
    return model.eval(), runner


def assert_equal(actual, expected):
    assert torch.equal(actual.pred_score, expected.pred_score)
    assert torch.equal(actual.anomaly_map, expected.anomaly_map)


def test_life_of_a_model(mvtec_root, unseen, tmp_path):
    """Fit, copy, checkpoint, memory bank file: the index is built anew, from equal banks to equal scores."""
    model_class = SoftPatchPlus  # which has two banks; that SoftPatch has the option, too, `test_models.py` shows
    trained, runner = train(model_class, mvtec_root, tmp_path, search="faiss")
    exact, _ = train(model_class, mvtec_root, tmp_path)
    assert exact.model.search == "exact"
    assert torch.equal(trained.model.memory_bank, exact.model.memory_bank)
    expected = trained.model(unseen)
    assert ApproximateIndex in {type(index) for index in trained.model._search.indexes.values()}
    # Some neighbors are missed here, and those found instead are not much farther away
    exact(unseen)
    assert type(exact.model._search) is NearestNeighborSearch
    ratios = distances(trained, unseen) / distances(exact, unseen)
    assert bool((ratios >= 1 - 1e-6).all())
    assert bool((ratios > 1 + 1e-4).any())
    assert float(ratios.mean()) < 1.05

    copied = copy.deepcopy(trained)
    assert copied.model._search is None
    assert_equal(copied.model(unseen), expected)
    checkpoint = runner.trainer.checkpoint_callback.best_model_path
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["search"] == "faiss"
    restored = load_model(checkpoint).eval()
    assert_equal(restored.model(unseen), expected)
    assert type(restored.model._search) is ApproximateSearch
    assert_equal(model_class.load_from_checkpoint(checkpoint, search="exact").eval().model(unseen), exact.model(unseen))
    other = lightning_model(model_class, coreset_sampling_ratio=0.3, search="faiss").eval()
    load_memory_bank(other, save_memory_bank(exact, tmp_path / "bank.safetensors"))
    assert_equal(other.model(unseen), expected)


def distances(model, images):
    """Distances of the patches to what the model's search finds in the first part of its banks."""
    queries = model.model.extract(images).flatten(0, 2)
    queries = torch.nn.functional.pad(queries, (0, model.model.memory_bank.shape[1] - queries.shape[1]))
    search = model.model._search
    return search.nearest(queries, search.bank.parts[0])[0]


class Outputs(torch.nn.Module):
    """Model whose outputs can be traced."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        output = self.model(images)
        return output.pred_score, output.anomaly_map


def test_exported_file_has_the_exact_search(mvtec_root, unseen, tmp_path, caplog, monkeypatch):
    """In a graph, recorded here by PyTorch's own tracer, which is faster than an export; and exports report it."""

    def stop(*_args, **_kwargs):
        raise InterruptedError

    monkeypatch.setattr(torch.onnx, "export", stop)  # all messages come before
    trained, _ = train(SoftPatch, mvtec_root, tmp_path, search="faiss")
    for search, count in (("faiss", 1), ("exact", 0)):
        caplog.clear()
        trained.model.search = search
        with caplog.at_level(logging.INFO, logger="anomalib_softpatch"), pytest.raises(InterruptedError):
            trained.to_onnx(tmp_path / search)
        assert caplog.text.count("The exported file has the exact search") == count
    images, model = trained.pre_processor(unseen), trained.model
    expected = model(images)
    model.search = "faiss"
    assert not torch.equal(model(images).anomaly_map, expected.anomaly_map)
    score, anomaly_map = torch.jit.trace(Outputs(model), images, check_trace=False)(images)
    torch.testing.assert_close(score, expected.pred_score)
    torch.testing.assert_close(anomaly_map, expected.anomaly_map)


@pytest.mark.parametrize("model_class", MODELS)
def test_missing_faiss_is_named_before_any_work(model_class, monkeypatch):
    """Before the backbone is made, and on the command line in one line."""
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'anomalib-softpatch\[faiss\]'.*search='exact'") as caught:
        model_class(search="faiss", backbone="no such backbone")
    assert bad_input(caught.value) == str(caught.value)
    lightning_model(model_class)  # the default does not need it
