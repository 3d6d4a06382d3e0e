# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Two processes against one: the same memory bank on every rank, whatever share of the images each has."""

import shutil
from itertools import chain
from pathlib import Path

import distributed_fit
import pytest
import torch
from anomalib.engine import Engine
from lightning import seed_everything
from torch import distributed, multiprocessing

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components import DenoisingMemoryBank, FeatureStore, coreset
from anomalib_softpatch.components.coreset import k_center_greedy
from samples import mixture

GRID = (5, 4)
IMAGES = 7

# Options of the memory bank, and the images of each rank in the order in which they come
TWO_BANKS = {"discriminators": ("lof", "gaussian"), "thresholds": (0.15, 0.5), "coreset_sampling_ratio": 0.3}
SAMPLED = ([4, 0, 6, 1], [2, 5, 3, 4])  # as a DistributedSampler shuffles 7 images: the first comes twice
FITS = {
    "same position": (TWO_BANKS, SAMPLED),
    "neighbourhood": (TWO_BANKS | {"neighborhood": 1}, SAMPLED),
    "whole image": (TWO_BANKS | {"neighborhood": "image"}, SAMPLED),
    "few references": (TWO_BANKS | {"neighborhood": 1, "max_references": 20}, SAMPLED),
    "one discriminator": ({"lof_k": 3}, SAMPLED),
    "PatchCore": ({"thresholds": (0.0,), "soft_weight": False}, SAMPLED),
    "uneven": (TWO_BANKS, ([3, 2, 1, 0, 6, 5], [4])),
    "a rank without images": (TWO_BANKS, ([], [3, 2, 1, 0, 6, 5, 4])),
}


ROWS = {
    "mixture": mixture(2000, 16),
    "low rank": mixture(1000, 8) @ mixture(8, 40),
    "ties": torch.randint(0, 4, (1000, 5), generator=torch.Generator().manual_seed(2)).float(),
    "duplicates": mixture(200, 16).repeat(4, 1),
    "fewer distinct rows than centres": torch.randint(
        0, 3, (99, 2), generator=torch.Generator().manual_seed(3)
    ).float(),
    "constant": torch.ones(80, 8),
}


def features():
    return torch.randn(IMAGES, GRID[0] * GRID[1], 140, generator=torch.Generator().manual_seed(0))


def store_of(images, keyed=True, **arguments):
    store = FeatureStore(**arguments)
    for batch in torch.tensor(images, dtype=torch.long).split(3):
        keys = [f"{image:03}.png" for image in batch.tolist()] if keyed else None
        if len(batch):
            store.append(features()[batch], keys)
    return store


def fit(store, options, seed=1):
    seed_everything(seed, verbose=False)
    return DenoisingMemoryBank(**options, progress=False).fit(store, GRID if store.shape[0] else (0, 0))


def select(rows, numbers, **options):
    size = min(200, len(rows) // 4)
    eligible = torch.rand(len(rows), generator=torch.Generator().manual_seed(4)) < 0.8
    eligible[3] = True
    return (
        k_center_greedy(rows[numbers], size, first=7, numbers=numbers, **options),
        k_center_greedy(rows[numbers], size, first=3, eligible=eligible, numbers=numbers, **options),
    )


def work(rank, folder):
    """Run all cases as one of two ranks, and save what comes out."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for name, (options, shares) in FITS.items():
        results[name] = fit(store_of(shares[rank]), options, seed=1 + rank)  # rank 0's random numbers count
    results["without keys"] = fit(store_of(SAMPLED[rank], keyed=False), TWO_BANKS)
    results["on disk"] = fit(store_of(SAMPLED[rank], memory_budget=0), TWO_BANKS)
    other_size = FeatureStore()
    other_size.append(torch.randn(2, 20 + rank, 140))
    try:
        fit(other_size, TWO_BANKS)
    except ValueError as error:
        results["other sizes"] = str(error)
    for name, rows in ROWS.items():
        for active_size in (16, 4096):
            coreset.ACTIVE_SIZE = active_size
            mine = torch.rand(len(rows), generator=torch.Generator().manual_seed(5)) < 0.3
            results[name, active_size] = select(rows, (mine == bool(rank)).nonzero().squeeze(1))
    torch.save(results, Path(folder, f"rank{rank}.pt"))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes got."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same_bank(actual, expected):
    assert torch.equal(actual.indices, expected.indices)
    assert torch.equal(actual.features, expected.features)
    assert torch.equal(actual.kept, expected.kept)
    assert actual.bank_ranges == expected.bank_ranges
    assert actual.keys == expected.keys
    torch.testing.assert_close(actual.weights, expected.weights)
    torch.testing.assert_close(actual.discriminator_scores, expected.discriminator_scores)


@pytest.mark.parametrize("name", FITS)
def test_bank_of_one_process(ranks, name):
    options, _ = FITS[name]
    expected = fit(store_of([5, 2, 0, 1, 6, 3, 4]), options)
    assert expected.keys == tuple(f"{image:03}.png" for image in range(IMAGES))
    for results in ranks:
        assert_same_bank(results[name], expected)


def test_images_without_keys_come_rank_by_rank(ranks):
    expected = fit(store_of([*chain(*SAMPLED)], keyed=False), TWO_BANKS)
    assert expected.kept.shape[1] == 8
    for results in ranks:
        assert_same_bank(results["without keys"], expected)


def test_shares_on_disk(ranks):
    for results in ranks:
        assert_same_bank(results["on disk"], results["same position"])


def test_every_rank_refuses_other_sizes(ranks):
    for results in ranks:
        assert "[(20, 140), (21, 140)]: all training images must reach the model at one size" in results["other sizes"]


@pytest.mark.parametrize("active_size", [16, 4096])
@pytest.mark.parametrize("name", ROWS)
def test_coreset_of_one_process(ranks, name, active_size):
    expected = select(ROWS[name], torch.arange(len(ROWS[name])))
    for results in ranks:
        for actual, wanted in zip(results[name, active_size], expected, strict=True):
            assert actual.tolist() == wanted.tolist()


def test_numbering():
    """By key, whatever the order of arrival; an image that comes twice to one process counts twice."""
    store = FeatureStore()
    values = torch.arange(4.0).view(4, 1, 1)
    store.append(values[:3], ["b", "c", "a"])
    store.append(values[3:], ["b"])
    assert store.numbering().keys == ("a", "b", "b", "c")
    assert store.project().flatten().tolist() == [2, 0, 3, 1]
    assert store.rows(torch.tensor([3, 0])).flatten().tolist() == [1, 2]
    with pytest.raises(ValueError, match="1 keys came with the features of 4 images"):
        store.append(values, ["d"])


@pytest.mark.parametrize(("arguments", "expected"), [({}, 1), ({"devices": "auto"}, 1), ({"devices": 2}, 2)])
def test_one_device_unless_asked_for_more(arguments, expected, tmp_path):
    model = SoftPatch(backbone="resnet18", pre_trained=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", **arguments)
    engine._setup_trainer(model)
    assert engine._cache.args["devices"] == expected  # Lightning makes 1 of "auto" on a CPU
    assert engine.trainer.num_devices == expected


def test_engine_on_two_devices(mvtec_root, tmp_path, run_python):
    """An odd number of images, some of them repeated ones in each rank's own temporary folder."""
    root = tmp_path / "MVTecAD"
    shutil.copytree(mvtec_root, root)
    (root / "bottle" / "train" / "good" / "007.png").unlink()
    run_python(distributed_fit.__file__, root, tmp_path, 2, cwd=tmp_path)
    distributed_fit.run(root, tmp_path, 1)
    expected, *ranks = (
        torch.load(tmp_path / f"rank{name}.pt", weights_only=False) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert len(expected["keys"]) == 13
    for actual in ranks:
        assert actual["keys"] == expected["keys"]
        assert actual["banks"] == expected["banks"]
        torch.testing.assert_close(actual["bank"], expected["bank"])
        torch.testing.assert_close(actual["weights"], expected["weights"])
        torch.testing.assert_close(actual["scores"], expected["scores"])
        assert actual["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
    first, second = (actual["predictions"] for actual in ranks)
    assert not first.keys() & second.keys()
    assert (first | second).keys() == expected["predictions"].keys()
    for path, wanted in expected["predictions"].items():
        torch.testing.assert_close((first | second)[path], wanted, rtol=1e-4, atol=1e-4)
    assert len(list(tmp_path.rglob("noise_report/report.html"))) == 2  # one for each run, not for each rank
