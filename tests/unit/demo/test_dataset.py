# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The demo's set of images."""

import socket
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import MVTecAD
from PIL import Image

from anomalib_softpatch.demo import dataset
from anomalib_softpatch.demo.dataset import CATEGORY, DEFECTS, add_defect, load_photographs, make_dataset, read_hidden

SMALL = {"num_train": 5, "num_test_good": 2, "num_test_per_defect": 2, "num_hidden": 4}


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("demo"), **SMALL)


def pixels(path):
    return np.asarray(Image.open(path))


def test_photographs_need_no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the photographs must come from the installed scikit-image")

    monkeypatch.setattr(socket, "socket", refuse)
    for photograph in load_photographs().values():
        assert photograph.shape == (512, 512)
        assert 0 <= photograph.min() < photograph.max() <= 1
        assert photograph.std() > 0.05


def test_missing_photographs_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "files", lambda _: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gravel\.png"):
        load_photographs()


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


def test_hidden_images_are_copies_of_test_images(category):
    hidden = read_hidden(category)
    assert [Path(row["test_image"]).parent.name for row in hidden] == ["brick", "grass", "stain", "brick"]
    assert len({row["train_image"] for row in hidden}) == SMALL["num_hidden"]
    for row in hidden:
        np.testing.assert_array_equal(pixels(category / row["train_image"]), pixels(category / row["test_image"]))
        assert (category / row["mask"]).is_file()


def test_other_training_images_are_in_no_other_place(category):
    hidden = {row["train_image"] for row in read_hidden(category)}
    images = sorted((category / "train" / "good").iterdir())
    assert [image.name for image in images] == [f"{index:03d}.png" for index in range(len(images))]
    normal = [pixels(image).tobytes() for image in images if f"train/good/{image.name}" not in hidden]
    test = [pixels(image).tobytes() for image in (category / "test").rglob("*.png")]
    assert len(normal) == SMALL["num_train"]
    assert len({*normal, *test}) == len(normal) + len(test)


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_changes_the_image_inside_its_mask(defect):
    photographs = load_photographs()
    image = photographs["gravel"][:256, :256]
    for seed in range(5):
        changed, mask = add_defect(image, defect, photographs, np.random.default_rng(seed))
        difference = np.abs(changed - image)
        assert 0.005 < mask.mean() < 0.15
        assert difference[mask].mean() > 0.05
        assert difference[mask].sum() > difference[~mask].sum()
        assert difference[~mask].mean() < 0.01
        assert 0 <= changed.min() <= changed.max() <= 1


def test_seed_decides(category, tmp_path):
    same = make_dataset(tmp_path / "same", **SMALL)
    other = make_dataset(tmp_path / "other", **SMALL, seed=1)
    names = sorted(path.relative_to(category) for path in category.rglob("*.*"))
    assert names == sorted(path.relative_to(same) for path in same.rglob("*.*"))
    assert all((category / name).read_bytes() == (same / name).read_bytes() for name in names)
    assert (category / "test/good/000.png").read_bytes() != (other / "test/good/000.png").read_bytes()


def test_more_hidden_images_keep_the_rest(category, tmp_path):
    fewer = make_dataset(tmp_path, **{**SMALL, "num_hidden": 0})
    assert read_hidden(fewer) == []
    test_images = sorted(path.relative_to(category) for path in (category / "test").rglob("*.png"))
    assert all((category / name).read_bytes() == (fewer / name).read_bytes() for name in test_images)


@pytest.mark.parametrize(
    ("name", "number"),
    [("num_train", 0), ("num_test_good", 0), ("num_test_per_defect", -1), ("num_hidden", 7), ("num_hidden", -1)],
)
def test_bad_numbers_are_refused_before_anything_is_written(tmp_path, name, number):
    with pytest.raises(ValueError, match=f"{name} must be .* got {number}"):
        make_dataset(tmp_path, **{**SMALL, name: number})
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(category):
    before = (category / "test/good/000.png").read_bytes()
    with pytest.raises(FileExistsError):
        make_dataset(category.parent, **SMALL, seed=1)
    assert (category / "test/good/000.png").read_bytes() == before
