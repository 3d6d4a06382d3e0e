# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The demo's set of images."""

import socket

import numpy as np
import pytest
from anomalib.data import MVTecAD

from anomalib_softpatch.demo.dataset import CATEGORY, DEFECTS, add_defect, make_dataset

SMALL = {"num_train": 5, "num_test_good": 2, "num_test_per_defect": 2, "num_hidden": 4}


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the photographs must come from the installed scikit-image")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        return make_dataset(tmp_path_factory.mktemp("demo"), **SMALL)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_anomalib_reads_it_as_mvtec(category):
    datamodule = MVTecAD(root=category.parent, category=CATEGORY, num_workers=0)
    datamodule.setup()
    assert len(datamodule.train_data) == SMALL["num_train"] + SMALL["num_hidden"]
    samples = datamodule.test_data.samples
    assert len(samples) == SMALL["num_test_good"] + SMALL["num_test_per_defect"] * len(DEFECTS)
    assert set(samples.label) == {"good", *DEFECTS}
    for item in datamodule.test_data:
        assert item.image.shape == (3, 256, 256)
        assert bool(item.gt_mask.any()) == bool(item.gt_label)


def test_hidden_images_are_copies_of_test_images_and_no_others_are(category):
    files = contents(category)
    train = [files[f"train/good/{number:03}.png"] for number in range(9)]
    hidden = ("brick/000", "grass/000", "stain/000", "brick/001")
    assert train[5:] == [files[f"test/{name}.png"] for name in hidden]
    assert len(set(files.values()) - set(train)) == len(files) - 9 - 4
    assert len(set(train)) == 9


def test_images_depend_on_the_seed_and_not_on_the_hidden_ones(category, tmp_path):
    files = contents(category)
    assert contents(make_dataset(tmp_path / "same", **SMALL)) == files
    fewer = contents(make_dataset(tmp_path / "fewer", **SMALL | {"num_hidden": 0}))
    assert fewer == {name: files[name] for name in fewer}
    assert len(fewer) == len(files) - 4
    other = contents(make_dataset(tmp_path / "other", **SMALL, seed=1))
    assert other.keys() == files.keys()
    assert not set(other.values()) & set(files.values())


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_changes_the_image_inside_its_mask(defect):
    rng = np.random.default_rng(0)
    photographs = {name: rng.random((512, 512), dtype=np.float32) for name in ("grass", "brick")}
    image = np.full((256, 256), 0.6, dtype=np.float32)
    for seed in range(5):
        changed, mask = add_defect(image, defect, photographs, np.random.default_rng(seed))
        difference = np.abs(changed - image)
        assert 0.005 < mask.mean() < 0.15
        assert difference[mask].mean() > 0.05
        assert difference[mask].sum() > difference[~mask].sum()
        assert difference[~mask].mean() < 0.01
        assert 0 <= changed.min() <= changed.max() <= 1


@pytest.mark.parametrize(
    ("name", "number"),
    [("num_train", 0), ("num_test_good", 0), ("num_test_per_defect", -1), ("num_hidden", 7), ("num_hidden", -1)],
)
def test_bad_numbers_are_refused_before_anything_is_written(tmp_path, name, number):
    with pytest.raises(ValueError, match=f"{name} must be .* got {number}"):
        make_dataset(tmp_path, **SMALL | {name: number})
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(category):
    before = contents(category)
    with pytest.raises(FileExistsError):
        make_dataset(category.parent, **SMALL, seed=1)
    assert contents(category) == before
