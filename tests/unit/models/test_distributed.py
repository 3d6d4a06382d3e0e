# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Several processes: the memory bank is that of one process, on every rank, and no error leaves a rank waiting."""

import os
import shutil
from itertools import chain
from pathlib import Path

import distributed_fit
import pytest
import torch
from anomalib.engine import Engine
from lightning import seed_everything
from torch import distributed, multiprocessing, nn

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.models import SoftPatchModel
from anomalib_softpatch.models.distributed import fit_on_first_rank

IMAGES = 7

# Options of the memory bank, and the images of each rank in the order in which they come
TWO_BANKS = {"discriminators": ("lof", "gaussian"), "thresholds": (0.15, 0.5), "coreset_sampling_ratio": 0.3}
SAMPLED = ([4, 0, 6, 1], [2, 5, 3, 4])  # as a DistributedSampler shuffles 7 images: the first comes twice
FITS = {
    "same position": (TWO_BANKS, SAMPLED),
    "neighborhood": (TWO_BANKS | {"neighborhood": 1}, SAMPLED),
    "whole image": (TWO_BANKS | {"neighborhood": "image"}, SAMPLED),
    "few references": (TWO_BANKS | {"neighborhood": 1, "max_references": 20}, SAMPLED),
    "another seed": (TWO_BANKS | {"seed": 5}, SAMPLED),
    "one discriminator": ({"lof_k": 3}, SAMPLED),
    "default of SoftPatch+": (
        {
            "discriminators": ("knn",),
            "thresholds": (0.0, 0.3),
            "soft_weight": False,
            "min_images": 3,
            "neighborhood": 1,
        },
        SAMPLED,
    ),
    "PatchCore": ({"thresholds": (0.0,), "soft_weight": False}, SAMPLED),
    "uneven": (TWO_BANKS, ([3, 2, 1, 0, 6, 5], [4])),
    "rank 0 without images": (TWO_BANKS, ([], [3, 2, 1, 0, 6, 5, 4])),
    "rank 1 without images": (TWO_BANKS, ([3, 2, 1, 0, 6, 5, 4], [])),
}
# Those that fail: options, images of each rank, width of each rank's grid
FAILURES = {
    "other sizes": (TWO_BANKS, SAMPLED, (4, 3)),
    "no images": (TWO_BANKS, ([], []), (4, 4)),
    "an empty bank": ({"coreset_sampling_ratio": 1e-6}, SAMPLED, (4, 4)),
    "one image, which came twice": (TWO_BANKS, ([4], [4]), (4, 4)),
}


def features(width=4):
    return torch.randn(IMAGES, 5, width, 140, generator=torch.Generator().manual_seed(0))


def make_model(options, images, keyed=True, width=4, memory_budget=None):
    """Make a model that has seen some images."""
    builder = DenoisingMemoryBank(**options)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3))
    model = SoftPatchModel(["0"], backbone, memory_bank_builder=builder, memory_budget=memory_budget)
    for batch in torch.tensor(images, dtype=torch.long).split(3):
        keys = [f"{image:03}.png" for image in batch.tolist()] if keyed else None
        if len(batch):
            model.feature_store.append(features(width)[batch], keys)
    return model


def fit(*arguments, **options):
    """Return the bank of a model, and the other findings of its fit."""
    model = make_model(*arguments, **options)
    on_disk = model.feature_store._spill is not None
    fit_on_first_rank(model, model.fit)
    assert model.feature_store.shape == (0, 0, 0, 0)
    return {
        "bank": model.memory_bank,
        "weights": model.weights,
        "radii": model.radii,
        "ranges": model.bank_ranges,
        "denoising": model.denoising,
        "on disk": on_disk,
    }


def work(rank, folder):
    """Run all cases as one of two ranks, and save what comes out."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    seed_everything(rank, verbose=False)
    results = {}
    for name, (options, shares, widths) in FAILURES.items():  # first: the others then show that the ranks still work
        model = make_model(options, shares[rank], width=widths[rank])
        with pytest.raises((ValueError, RuntimeError)) as caught:
            fit_on_first_rank(model, model.fit)
        results[name] = (caught.type, str(caught.value), model.feature_store.shape, model.bank_ranges)
    for name, (options, shares) in FITS.items():
        results[name] = fit(options, shares[rank])
    results["without keys"] = fit(TWO_BANKS, SAMPLED[rank], keyed=False)
    results["on disk"] = fit(TWO_BANKS, SAMPLED[rank], memory_budget=0)
    torch.save(results, Path(folder, f"rank{rank}.pt"))
    distributed.destroy_process_group()


# Forks the ranks from a process without threads that has imported everything
RANKS = """
import sys

sys.path[:0] = sys.argv[2:]
from torch import multiprocessing

import test_distributed

multiprocessing.start_processes(test_distributed.work, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, run_forked):
    """What each of two processes got."""
    folder = tmp_path_factory.mktemp("ranks")
    if hasattr(os, "fork"):
        run_forked("-c", RANKS, folder, Path(__file__).parent, cwd=folder)
    else:
        multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same(results, expected):
    """The banks are equal bit by bit; only rank 0 has the other findings of the fit."""
    for actual in results:
        assert torch.equal(actual["bank"], expected["bank"])
        assert torch.equal(actual["weights"], expected["weights"])
        assert torch.equal(actual["radii"], expected["radii"])
        assert actual["ranges"] == expected["ranges"]
    found, wanted = results[0]["denoising"], expected["denoising"]
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.kept, wanted.kept)
    assert found.keys == wanted.keys
    torch.testing.assert_close(
        found.scores and found.scores.by_discriminator, wanted.scores and wanted.scores.by_discriminator
    )
    assert results[1]["denoising"] is None


@pytest.mark.parametrize("name", FITS)
def test_bank_of_one_process(ranks, name):
    """An image that the sampler gave to both ranks counts once."""
    options, _ = FITS[name]
    expected = fit(options, [5, 2, 0, 1, 6, 3, 4])
    assert bool((expected["radii"] > 0).all()) == ("min_images" in options)
    assert expected["denoising"].keys == tuple(f"{image:03}.png" for image in range(IMAGES))
    assert_same([results[name] for results in ranks], expected)


def test_images_without_keys_come_rank_by_rank(ranks):
    expected = fit(TWO_BANKS, [*chain(*SAMPLED)], keyed=False)
    assert expected["denoising"].kept.shape[1] == 8
    assert_same([results["without keys"] for results in ranks], expected)


def test_features_on_disk(ranks):
    assert all(results["on disk"]["on disk"] for results in ranks)
    assert_same([results["on disk"] for results in ranks], ranks[0]["same position"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other sizes", "Features of 5 x 3 patches x 140 channels follow features of 5 x 4 x 140: all training images"),
        ("no images", "no training image reached the model"),
        ("an empty bank", "coreset_sampling_ratio=1e-06 of 140 patches leaves an empty memory bank"),
        ("one image, which came twice", "at least 2 training images, got 1"),
    ],
)
def test_errors_reach_all_ranks(ranks, name, message):
    """All ranks report the error of rank 0, and none keeps features or a bank."""
    (error, text, *state), (other_error, other_text, *other_state) = (results[name] for results in ranks)
    assert error is ValueError
    assert message in text
    assert other_error is RuntimeError
    assert other_text == f"The fit failed on rank 0: ValueError: {text}"
    assert state == other_state == [(0, 0, 0, 0), ()]


@pytest.mark.parametrize(("arguments", "expected"), [({}, 1), ({"devices": "auto"}, 1), ({"devices": 2}, 2)])
def test_one_device_unless_asked_for_more(arguments, expected, tmp_path):
    model = SoftPatch(backbone="test_resnet", pre_trained=False)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", **arguments)
    engine._setup_trainer(model)
    assert engine._cache.args["devices"] == expected  # Lightning makes 1 of "auto" on a CPU
    assert engine.trainer.num_devices == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_ranks_may_be_forked(mvtec_root, tmp_path, run_python):
    """By another of Lightning's strategies. The process that has started the ranks has the memory bank, too."""
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        from distributed_fit import make, make_engine
        torch.manual_seed(0)
        model, datamodule = make({str(mvtec_root)!r})
        engine = make_engine(".", 2, "ddp_fork")
        engine.fit(model, datamodule=datamodule)
        checkpoint = torch.load(engine.best_model_path, weights_only=True)
        torch.save([model.state_dict(), checkpoint["state_dict"]], "states.pt")
    """
    run_python("-c", code, cwd=tmp_path)  # not forked itself, which Lightning refuses
    torch.manual_seed(0)
    model, datamodule = distributed_fit.make(mvtec_root)
    distributed_fit.make_engine(tmp_path, 1).fit(model, datamodule=datamodule)
    expected = model.state_dict()
    for state in torch.load(tmp_path / "states.pt", weights_only=True):
        for name in ("model.memory_bank", "model.radii", "model.weights", "post_processor._image_threshold"):
            torch.testing.assert_close(state[name], expected[name], msg=name)


def test_engine_on_two_devices(mvtec_root, tmp_path, run_forked):
    """With an odd number of images, some of which are repeated in each rank's own temporary folder."""
    root = tmp_path / "MVTecAD"
    shutil.copytree(mvtec_root, root)
    (root / "bottle" / "train" / "good" / "007.png").unlink()
    run_forked(distributed_fit.__file__, root, tmp_path, 2, cwd=tmp_path)  # which starts the second rank anew
    distributed_fit.run(root, tmp_path, 1)
    expected, *ranks = (
        torch.load(tmp_path / f"rank{name}.pt", weights_only=False) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert len(expected["keys"]) == 13
    assert ranks[0]["keys"] == expected["keys"]
    torch.testing.assert_close(ranks[0]["scores"], expected["scores"])
    assert ranks[1]["keys"] is None  # what the fit found is on rank 0 only
    for actual in (expected, *ranks):
        assert actual["trainable"] == {stage: [] for stage in ("fit", "test", "predict", "fit again")}
        torch.testing.assert_close(actual["first bank"], actual["bank"])
    for actual in ranks:
        assert actual["banks"] == expected["banks"]
        torch.testing.assert_close(actual["bank"], expected["bank"])
        torch.testing.assert_close(actual["weights"], expected["weights"])
        assert (actual["radii"] > 0).all()
        torch.testing.assert_close(actual["radii"], expected["radii"])
        assert actual["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
    first, second = (actual["predictions"] for actual in ranks)
    assert not first.keys() & second.keys()
    assert (first | second).keys() == expected["predictions"].keys()
    for path, wanted in expected["predictions"].items():
        torch.testing.assert_close((first | second)[path], wanted, rtol=1e-4, atol=1e-4)
    assert len(list(tmp_path.rglob("noise_report/report.html"))) == 2  # one for each run, not for each rank
