# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The memory that a fit needed is freed. See `benchmarks/soak.py` for the memory over hundreds of fits."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.components.search import exact
from anomalib_softpatch.models import SoftPatchModel

BACKBONE = {"backbone": "test_resnet", "layers": ["layer1"], "pre_trained": False}
FITS = 3


def living_tensors() -> int:
    """Elements of all tensors that can be reached, shared storage counted once."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch._subclasses.FakeTensor)
    }
    return sum(storages.values())


@pytest.mark.parametrize(("thresholds", "memory_budget"), [((0.15,), 0), ((0.15, 0.5), None)])
def test_features_go_with_the_fit(memory_budget, thresholds, monkeypatch):
    """A model that is fitted again and again keeps neither features nor an earlier bank."""
    builder = DenoisingMemoryBank(("lof", "gaussian"), thresholds, coreset_sampling_ratio=0.2)
    model = SoftPatchModel(**BACKBONE, memory_bank_builder=builder, memory_budget=memory_budget)
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0)
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features, banks, living = [], [], []
    for _ in range(FITS):
        model.train()
        features += [weakref.ref(model(batch)) for batch in images.split(2)]
        assert (model.feature_store._spill is not None) == (memory_budget == 0)
        folder = Path(model.feature_store._spill.name) if memory_budget == 0 else None
        model.fit()
        banks.append(weakref.ref(model.memory_bank))
        model.eval()(images)
        living.append(living_tensors())
        assert folder is None or not folder.exists()
    assert not any(reference() is not None for reference in features)
    assert [reference() is not None for reference in banks] == [False] * (FITS - 1) + [True]
    assert living[-1] == living[1]


def test_models_go_with_their_engine(mvtec_root, tmp_path):
    """Nothing global holds a model that was trained, nor its training features."""
    references, living = [], []
    for _ in range(3):
        model = SoftPatch(
            **BACKBONE,
            coreset_sampling_ratio=0.02,
            visualizer=False,
            pre_processor=SoftPatch.configure_pre_processor((64, 64)),
        )
        engine = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
        engine.fit(model, datamodule=MVTecAD(root=mvtec_root, category="bottle", num_workers=0))
        references += [weakref.ref(model), weakref.ref(model.model), weakref.ref(model.model.denoising.features)]
        assert model.model.feature_store.shape == (0, 0, 0, 0)
        del model, engine
        living.append(living_tensors())
    assert not any(reference() is not None for reference in references)
    assert living[-1] == living[1]
