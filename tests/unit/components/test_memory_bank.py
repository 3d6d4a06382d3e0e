# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The denoising memory bank on its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_softpatch.components import DISCRIMINATORS, DenoisingMemoryBank, FeatureStore, keep_mask


@pytest.fixture
def features():
    """Features of 30 images, three of which have a defect at the same place."""
    features = torch.randn(30, 6, 5, 24, generator=torch.Generator().manual_seed(0))
    features[:3, 1, 2:4] += 8
    return features


def build(features, **arguments):
    return DenoisingMemoryBank(**arguments).fit(features)


def test_defects_stay_out(features):
    """PatchCore's selection contains defects. With a threshold it contains none, not even as the first center."""
    defects = {image * 30 + place for image in range(3) for place in (7, 8)}
    patchcore = build(features, thresholds=(0.0,), soft_weight=False)
    assert defects & set(patchcore.indices.tolist())
    for seed in range(20):
        bank = build(features, seed=seed, thresholds=(0.05,))
        assert not defects & set(bank.indices.tolist())
        assert bank.kept[0].flatten()[bank.indices].all()


def test_size_counts_all_patches(features):
    bank = build(features, thresholds=(0.5,), coreset_sampling_ratio=0.1)
    assert len(bank.indices) == 90
    assert len(build(features, thresholds=(0.5,), coreset_sampling_ratio=1.0).indices) == 450


@pytest.mark.parametrize(("discriminator", "offset"), [("lof", 0), ("nearest", 1), ("gaussian", 1), ("knn", 1)])
def test_weights_are_scores(features, discriminator, offset):
    bank = build(features, discriminators=(discriminator,))
    torch.testing.assert_close(bank.weights, bank.scores.fused.flatten()[bank.indices] + offset)
    torch.testing.assert_close(bank.features, features.reshape(-1, 24)[bank.indices])
    assert (build(features, soft_weight=False).weights == 1).all()


def test_two_banks_share_rows(features):
    """Each bank is one range of rows, its patches are those its threshold keeps, and none is stored twice."""
    thresholds = (0.15, 0.5)
    bank = build(features, discriminators=("lof", "gaussian"), thresholds=thresholds, coreset_sampling_ratio=0.3)
    assert len(bank.indices) == len(set(bank.indices.tolist()))
    for (start, stop), kept, threshold in zip(bank.bank_ranges, bank.kept, thresholds, strict=True):
        assert stop - start == 270
        assert torch.equal(kept, keep_mask(bank.scores.fused, threshold))
        assert kept.flatten()[bank.indices[start:stop]].all()
    assert len(bank.indices) < 540
    assert set(bank.scores.by_discriminator) == {"lof", "gaussian"}


@pytest.mark.parametrize("soft_weight", [False, True, "rank", "lof"])
def test_weights_of_fused_ranks(features, soft_weight):
    bank = build(features, discriminators=("lof", "gaussian"), soft_weight=soft_weight)
    expected = {
        False: torch.ones(30 * 30),
        "rank": 1 + bank.scores.fused.flatten(),
        "lof": bank.scores.by_discriminator["lof"].flatten(),
    }
    expected[True] = expected["rank"]
    torch.testing.assert_close(bank.weights, expected[soft_weight][bank.indices])


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(2, 6),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 6),
    discriminators=st.lists(st.sampled_from(sorted(DISCRIMINATORS)), min_size=1, unique=True),
    thresholds=st.lists(st.floats(0, 0.999), min_size=1, max_size=2),
    ratio=st.floats(0.02, 1),
    soft_weight=st.booleans(),
    neighborhood=st.sampled_from([0, 1, "image"]),
    scale=st.sampled_from([0.0, 1e-15, 1e-6, 1.0, 1e4, 1e17]),
    continuous=st.booleans(),
    duplicates=st.integers(0, 5),
    seed=st.integers(0, 5),
)
def test_any_input(
    images,
    grid,
    channels,
    discriminators,
    thresholds,
    ratio,
    soft_weight,
    neighborhood,
    scale,
    continuous,
    duplicates,
    seed,
):
    """Outputs are finite, sizes as requested, banks subsets of the kept patches, and weights aligned with them."""
    patches = grid[0] * grid[1]
    size = int(images * patches * ratio)
    if size < 1:
        return
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(images, *grid, channels, generator=generator) * 6 - 3
    features = scale * (features if continuous else features.round())
    features[1 : 1 + duplicates] = features[:1]
    builder = DenoisingMemoryBank(discriminators, thresholds, ratio, soft_weight, lof_k=1, neighborhood=neighborhood)
    bank = builder.fit(features)
    assert bank.features.isfinite().all()
    assert bank.weights.isfinite().all()
    assert (bank.weights >= 0).all()
    assert torch.equal(bank.features, features.reshape(-1, channels)[bank.indices])
    if not builder.needs_scores:
        expected = torch.ones(images * patches)
        assert bank.scores is None
        assert bank.kept.all()
    else:
        expected = bank.scores.fused.flatten() + (0 if discriminators == ["lof"] else 1)
        if not soft_weight:
            expected = torch.ones_like(expected)
        assert bank.scores.fused.isfinite().all()
        for kept, threshold in zip(bank.kept, thresholds, strict=True):
            removed = (~kept).sum()
            assert removed <= int(threshold * images * patches)  # fewer where scores tie with the last one kept
            assert (
                not kept.all() or threshold * images * patches < 1 or bank.scores.fused.unique().numel() < kept.numel()
            )
            assert removed == 0 or bank.scores.fused[~kept].min() > bank.scores.fused[kept].max()
    torch.testing.assert_close(bank.weights, expected[bank.indices])
    for (start, stop), kept in zip(bank.bank_ranges, bank.kept, strict=True):
        assert kept.any()
        assert kept.flatten()[bank.indices[start:stop]].all()
        distinct = len(features.reshape(-1, channels)[kept.flatten()].unique(dim=0))
        assert min(size, distinct) <= stop - start <= min(size, int(kept.sum()))


def test_masks_that_leave_one_patch(features):
    """If all patches but one are removed, the bank is that patch, whatever the requested size."""
    for discriminators in (("lof",), ("lof", "gaussian")):
        bank = build(features, discriminators=discriminators, thresholds=(0.9999,), coreset_sampling_ratio=1.0)
        assert bank.kept.sum() == 1
        assert bank.indices.tolist() == [int(bank.scores.fused.argmin())]
        assert bank.weights.shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": (1.0,)}, r"thresholds=1\.0 must be a share of at least 0 and below 1"),
        ({"thresholds": (-0.1,)}, r"thresholds=-0\.1 must be"),
        ({"thresholds": ("most",)}, "thresholds='most' must be"),
        ({"thresholds": ()}, "one value, or two"),
        ({"thresholds": (0.1, 0.2, 0.3)}, "one value, or two"),
        ({"lof_k": 0}, "lof_k=0 must be a whole number of 1 or more"),
        (
            {"discriminators": ("svm",)},
            "Unknown discriminator 'svm': choose from gaussian, knn, lof, nearest",
        ),
        ({"discriminators": ("lof", "lof")}, "different names"),
        ({"coreset_sampling_ratio": 0.0}, r"coreset_sampling_ratio=0\.0 must be a share above 0"),
        ({"neighborhood": -1}, "neighborhood=-1 must be 'image' or a radius"),
        ({"neighborhood": "window"}, "neighborhood='window'"),
        ({"seed": -1}, "seed=-1 must be a whole number of 0 or more"),
        ({"max_references": 0}, "max_references"),
        ({"soft_weight": "odds"}, "soft_weight"),
        ({"discriminator_options": {"odds": 1}}, "Unknown discriminator option 'odds': choose from lof_k"),
        ({"soft_weight": "rank"}, "soft_weight"),
        ({"discriminators": ("nearest", "gaussian"), "soft_weight": "lof"}, "soft_weight"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenoisingMemoryBank(**arguments)


@pytest.mark.parametrize(
    ("images", "shape", "ratio", "message"),
    [
        (1, (6, 5, 24), 0.1, "at least 2 training images, got 1"),
        (4, (30, 24), 0.1, r"shape \(images, height, width, channels\), got \(4, 30, 24\)"),
        (4, (6, 5, 24), 0.001, "coreset_sampling_ratio=0.001 of 120 patches leaves an empty memory bank"),
    ],
)
def test_bad_features(features, images, shape, ratio, message):
    with pytest.raises(ValueError, match=message):
        DenoisingMemoryBank(coreset_sampling_ratio=ratio).fit(features[:images].reshape(images, *shape))


def test_no_features():
    with pytest.raises(ValueError, match="no training image reached the model"):
        DenoisingMemoryBank().fit(FeatureStore())


def test_seed(features):
    """Equal seeds give equal banks whatever the state of the global generators, which a fit does not change."""
    options = {"discriminators": ("lof", "gaussian"), "thresholds": (0.15, 0.5), "max_references": 20}
    states = []
    banks = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        banks.append(build(features, **options))
        states.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))  # noqa: NPY002
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        assert states[-1] == (torch.rand(3).tolist(), np.random.rand(3).tolist())  # noqa: NPY002
    assert torch.equal(banks[0].indices, banks[1].indices)
    assert torch.equal(banks[0].weights, banks[1].weights)
    assert banks[0].bank_ranges == banks[1].bank_ranges
    other = build(features, **options, seed=1)
    assert not torch.equal(other.scores.fused, banks[0].scores.fused)
    assert other.indices.tolist() != banks[0].indices.tolist()
