# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

import json
import logging
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import Avenue, Folder, Folder3D, ImageBatch, MVTec3D, MVTecAD, MVTecAD2, MVTecLOCO, get_datamodule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning import seed_everything
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, Resize

from anomalib_softpatch.data.noise import rotate_and_shift
from anomalib_softpatch.data.noisy import NoisyDataModule

NORMAL, ANOMALOUS = 20, 8


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Category `nut` in MVTec AD's layout; every image is different."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", NORMAL), ("test/good", 6), ("test/cut", 5), ("test/hole", 3)):
        for number in range(count):
            mask = np.zeros((24, 32), np.uint8)
            if not folder.endswith("good"):
                mask[6 : 12 + number, 8:20] = 255
                save(mask, root / "nut" / "ground_truth" / Path(folder).name / f"{number:03}_mask.png")
            image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            save(image, root / "nut" / folder / f"{number:03}.png")
    return root


@pytest.fixture
def nut(root: Path) -> Callable[..., MVTecAD]:
    """Function that makes the datamodule to wrap."""
    return lambda **options: MVTecAD(root=root, category="nut", num_workers=0, **{"seed": 0, **options})


def noisy(datamodule: Any, **options: Any) -> NoisyDataModule:
    noisy = NoisyDataModule(datamodule, **options)
    noisy.setup()
    return noisy


def paths(dataset: Any) -> list[str]:
    return sorted(dataset.samples["image_path"])


def names(files: Iterable[str]) -> set[tuple[str, ...]]:
    """Return names without the dataset's folder, which is always a new one when Anomalib makes synthetic images."""
    return {Path(file).parts[-2:] for file in files}


class TestInjection:
    def test_the_number_is_the_ratio_of_the_normal_training_images(self, nut: Callable) -> None:
        for ratio in (0, 0.04, 0.05, 0.19, 0.35):
            datamodule = noisy(nut(), noise_ratio=ratio)
            assert len(datamodule.noise) == int(ratio * NORMAL)
            assert len(datamodule.train_data) == NORMAL + int(ratio * NORMAL)

    def test_the_true_share_of_noise_is_that_of_all_training_images(
        self, nut: Callable, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            datamodule = noisy(nut(), noise_ratio=0.4, overlap=True)
        assert datamodule.noise_share == datamodule.truth["true_label_index"].mean() == 8 / 28
        assert "Injected 8 images into MVTecAD: 28.6 % of its 28 training images." in caplog.text

    def test_injected_images_train_as_normal_ones_and_their_truth_is_known(self, nut: Callable, root: Path) -> None:
        datamodule = noisy(nut(), noise_ratio=0.2, overlap=True)
        injected = set(datamodule.noise["image_path"])
        assert len(injected) == 4
        for item in datamodule.train_data:
            assert item.gt_label == 0
            assert item.gt_mask.sum() == 0
            assert not item.mask_path
            truth = datamodule.truth.loc[item.image_path]
            assert truth["true_label_index"] == int(item.image_path in injected)
            mask = datamodule.true_mask(item.image_path)
            if item.image_path in injected:
                expected = (
                    root
                    / "nut/ground_truth"
                    / Path(item.image_path).parent.name
                    / f"{Path(item.image_path).stem}_mask.png"
                )
                assert np.array_equal(mask.numpy() * 255, np.asarray(Image.open(expected)))
            else:
                assert mask is None

    def test_overlap_leaves_the_test_and_validation_sets_alone(self, nut: Callable) -> None:
        clean = nut()
        clean.setup()
        datamodule = noisy(nut(), noise_ratio=0.3, overlap=True)
        assert paths(datamodule.test_data) == paths(clean.test_data)
        assert paths(datamodule.val_data) == paths(clean.val_data)
        assert datamodule.noise["in_test"].all()

    def test_without_overlap_injected_images_leave_the_test_and_validation_sets(self, nut: Callable) -> None:
        clean = nut()
        clean.setup()
        datamodule = noisy(nut(), noise_ratio=0.3)
        injected = set(datamodule.noise["image_path"])
        assert len(injected) == 6
        assert paths(datamodule.test_data) == sorted(set(paths(clean.test_data)) - injected)
        assert paths(datamodule.val_data) == sorted(set(paths(clean.val_data)) - injected)
        assert not datamodule.noise["in_test"].any()

    def test_ratio_zero_changes_nothing(self, nut: Callable) -> None:
        clean = nut()
        clean.setup()
        for overlap in (False, True):
            datamodule = noisy(nut(), noise_ratio=0, overlap=overlap)
            assert datamodule.noise.empty
            for subset in ("train_data", "val_data", "test_data"):
                ours, theirs = (getattr(each, subset).samples for each in (datamodule, clean))
                assert ours[theirs.columns].equals(theirs)
                assert ours.attrs == theirs.attrs
            assert (datamodule.truth["true_label_index"] == 0).all()

    def test_higher_ratios_and_the_other_protocol_inject_the_same_images_first(self, nut: Callable) -> None:
        everything = list(noisy(nut(), noise_ratio=1, overlap=True).noise[["source", "angle"]].itertuples(index=False))
        for ratio in (0.05, 0.2, 0.35, 0.6):
            for overlap in (False, True):
                if ratio < 0.4 or overlap:
                    noise = noisy(nut(), noise_ratio=ratio, overlap=overlap).noise[["source", "angle"]]
                    assert list(noise.itertuples(index=False)) == everything[: len(noise)]

    def test_the_choice_does_not_depend_on_the_splits_seed_or_on_where_the_set_lies(
        self,
        nut: Callable,
        root: Path,
        tmp_path: Path,
    ) -> None:
        expected = list(noisy(nut(), noise_ratio=0.3, overlap=True, seed=4).noise["source"])
        moved = tmp_path / "elsewhere"
        shutil.copytree(root, moved)
        (tmp_path / "link").symlink_to(moved)
        for folder in (moved, tmp_path / "link"):
            for split_seed in (0, 1, None):
                options = {"val_split_mode": "from_test", "seed": split_seed}
                wrapped = MVTecAD(root=folder, category="nut", num_workers=0, **options)
                assert list(noisy(wrapped, noise_ratio=0.3, overlap=True, seed=4).noise["source"]) == expected
        assert list(noisy(nut(), noise_ratio=0.3, overlap=True, seed=5).noise["source"]) != expected

    def test_the_wrapped_datamodule_is_left_as_it_is(self, nut: Callable) -> None:
        shared = nut()
        small, large = noisy(shared, noise_ratio=0.1), noisy(shared, noise_ratio=0.3)
        assert (len(small.train_data), len(large.train_data), len(shared.train_data)) == (22, 26, 20)
        assert (len(small.test_data), len(large.test_data), len(shared.test_data)) == (12, 8, 14)

    def test_a_training_image_has_the_same_number_wherever_repeats_are_stored(
        self, nut: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process has another temporary folder, which may sort before or after the dataset's."""
        orders = []
        for folder in ("!first", "~last"):
            (tmp_path / folder).mkdir()
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path / folder))
            datamodule = noisy(nut(), noise_ratio=0.6, overlap=True)
            assert (datamodule.noise["repeat"] > 0).any()
            assert list(tmp_path.glob(f"{folder}/*"))
            samples = datamodule.train_data.samples
            assert (samples["true_label_index"][:NORMAL] == 0).all()
            assert (samples["true_label_index"][NORMAL:] == 1).all()
            assert list(samples["image_path"][:NORMAL]) == sorted(samples["image_path"][:NORMAL])
            assert list(samples["image_path"][NORMAL:]) == list(datamodule.noise["image_path"])
            orders.append([item.image for item in datamodule.train_data])
        assert all(torch.equal(one, other) for one, other in zip(*orders, strict=True))


class TestRepeats:
    def test_a_repeated_image_and_its_mask_are_moved_alike(self, nut: Callable, root: Path) -> None:
        datamodule = noisy(nut(), noise_ratio=1.25, overlap=True)
        noise = datamodule.noise
        assert Counter(noise["repeat"]) == {0: 8, 1: 8, 2: 8, 3: 1}
        assert noise["image_path"].is_unique
        assert Path(noise["image_path"].iloc[0]) == root / noise["source"].iloc[0]
        for row in noise[noise["repeat"] > 0].itertuples():
            motion = {"angle": row.angle, "shift_x": row.shift_x, "shift_y": row.shift_y}
            source = root / row.source
            image = rotate_and_shift(np.asarray(Image.open(source)), **motion)
            assert np.array_equal(np.asarray(Image.open(row.image_path)), image)
            mask = Image.open(root / "nut/ground_truth" / source.parent.name / f"{source.stem}_mask.png")
            moved = rotate_and_shift(np.asarray(mask), **motion, is_mask=True)
            assert np.array_equal(datamodule.true_mask(row.image_path).numpy() * 255, moved)

    def test_same_arguments_give_the_same_images(self, nut: Callable) -> None:
        one, two = (noisy(nut(), noise_ratio=0.8, overlap=True) for _ in range(2))
        for first, second in zip(one.train_data, two.train_data, strict=True):
            assert torch.equal(first.image, second.image)

    def test_the_temporary_images_go_with_the_datamodule(self, nut: Callable) -> None:
        datamodule = noisy(nut(), noise_ratio=0.8, overlap=True)
        repeated = Path(datamodule.noise["image_path"].iloc[-1])
        assert repeated.is_file()
        del datamodule
        assert not repeated.exists()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_epoch_has_every_image_once(self, nut: Callable, workers: int) -> None:
        wrapped = nut(train_batch_size=8)
        wrapped.num_workers = workers
        datamodule = noisy(wrapped, noise_ratio=0.8, overlap=True)
        batches = list(datamodule.train_dataloader())
        seen = [path for batch in batches for path in batch.image_path]
        assert sorted(seen) == paths(datamodule.train_data)
        assert not torch.cat([batch.gt_label for batch in batches]).any()
        assert datamodule.truth.loc[seen, "true_label_index"].sum() == 16

    def test_datasets_and_datamodule_can_be_pickled(self, nut: Callable) -> None:
        datamodule = noisy(nut(), noise_ratio=0.8, overlap=True)
        copy = pickle.loads(pickle.dumps(datamodule.train_data))
        assert torch.equal(copy[len(copy) - 1].image, datamodule.train_data[len(copy) - 1].image)
        assert len(pickle.loads(pickle.dumps(datamodule)).noise) == 16


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ratio=st.floats(0, 1.5),
    overlap=st.booleans(),
    resample=st.booleans(),
    seed=st.integers(0, 2**32),
    val_split_mode=st.sampled_from(["same_as_test", "from_test", "none"]),
)
def test_any_options(
    nut: Callable, ratio: float, overlap: bool, resample: bool, seed: int, val_split_mode: str
) -> None:
    """The right number of images is injected, or the error names the largest ratio that works."""
    options = {"overlap": overlap, "resample": resample, "seed": seed}
    try:
        datamodule = noisy(nut(val_split_mode=val_split_mode), noise_ratio=ratio, **options)
    except ValueError as error:
        assert not (overlap and resample)
        largest = float(str(error).rpartition(" ")[2].removesuffix("."))
        assert int(largest * NORMAL) < int(ratio * NORMAL)
        datamodule = noisy(nut(val_split_mode=val_split_mode), noise_ratio=largest, **options)
        ratio = largest
    count = int(ratio * NORMAL)
    assert len(datamodule.noise) == count
    train = datamodule.train_data.samples
    assert len(train) == len(set(train["image_path"])) == NORMAL + count
    assert (train["label_index"] == 0).all()
    assert train["true_label_index"].sum() == count
    assert set(train.loc[train["true_label_index"] == 1, "image_path"]) == set(datamodule.noise["image_path"])
    assert all(Path(path).is_file() for path in train["image_path"])
    tested = set(paths(datamodule.test_data)) | set(
        paths(datamodule.val_data) if hasattr(datamodule, "val_data") else ()
    )
    assert len(tested) == 14 - (0 if overlap else count)
    assert datamodule.test_data.has_anomalous
    if not overlap:
        assert not tested & set(datamodule.noise["image_path"])


class TestLimits:
    def message(self, nut: Callable, **options: Any) -> str:
        with pytest.raises(ValueError, match="The largest possible ratio is") as error:
            noisy(nut(), **options)
        return str(error.value)

    @pytest.mark.parametrize("options", [{}, {"overlap": True, "resample": False}])
    def test_too_few_images_name_the_largest_ratio(self, nut: Callable, options: dict) -> None:
        message = self.message(nut, noise_ratio=0.9, **options)
        available = 8 if options else 7  # one must remain to test with
        assert "noise_ratio=0.9 requires 18 anomalous images" in message
        assert f"only {available} can be injected" in message
        largest = float(message.rpartition(" ")[2].removesuffix("."))
        assert largest == available / NORMAL
        assert len(noisy(nut(), noise_ratio=largest, **options).noise) == available
        self.message(nut, noise_ratio=largest + 1.01 / NORMAL, **options)

    def test_resampling_does_not_help_without_overlap(self, nut: Callable) -> None:
        assert "only 7 can be injected" in self.message(nut, noise_ratio=0.4, resample=True)

    @pytest.mark.parametrize("split_seed", range(2))
    def test_an_anomalous_image_remains_in_a_test_set_that_gave_half_to_validation(
        self,
        nut: Callable,
        split_seed: int,
    ) -> None:
        options = {"val_split_mode": "from_test", "seed": split_seed}
        message = self.message(lambda: nut(**options), noise_ratio=0.45)
        largest = float(message.rpartition(" ")[2].removesuffix("."))
        assert noisy(nut(**options), noise_ratio=largest).test_data.has_anomalous
        self.message(lambda: nut(**options), noise_ratio=largest + 1.01 / NORMAL)

    def test_a_set_without_anomalous_images_has_no_noise_to_give(self, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root / "nut" / "train", tmp_path / "nut" / "train")
        shutil.copytree(root / "nut" / "test" / "good", tmp_path / "nut" / "test" / "good")
        wrapped = MVTecAD(root=tmp_path, category="nut", num_workers=0)
        assert len(noisy(wrapped, noise_ratio=0, overlap=True).train_data) == NORMAL
        for overlap in (False, True):
            with pytest.raises(ValueError, match=r"only 0 can be injected.*largest possible ratio is 0\.0"):
                noisy(wrapped, noise_ratio=0.1, overlap=overlap)

    @pytest.mark.parametrize("ratio", [-0.1, float("nan"), float("inf"), "0.1", True, None])
    def test_wrong_ratios_are_refused(self, nut: Callable, ratio: object) -> None:
        with pytest.raises(ValueError, match="noise_ratio="):
            NoisyDataModule(nut(), noise_ratio=ratio)

    @pytest.mark.parametrize("seed", [-1, 0.5, True, None])
    def test_wrong_seeds_are_refused(self, nut: Callable, seed: object) -> None:
        with pytest.raises(ValueError, match="seed="):
            NoisyDataModule(nut(), seed=seed)

    def test_depth_and_video_are_refused(self, tmp_path: Path) -> None:
        folder = Folder3D(name="x", normal_dir="x", root=tmp_path)
        for datamodule in (MVTec3D(root=tmp_path), folder, Avenue(root=tmp_path, gt_dir=tmp_path)):
            with pytest.raises(TypeError, match=f"datamodule={type(datamodule).__name__} has depth images or videos"):
                NoisyDataModule(datamodule)

    def test_other_objects_are_refused(self, nut: Callable) -> None:
        for wrong in (NoisyDataModule(nut()), 3, torch.nn.Identity()):
            with pytest.raises(TypeError, match="must be an Anomalib image datamodule"):
                NoisyDataModule(wrong)
        for wrong in ({"class_path": "NoSuchData"}, "NoSuchData", {"class_path": "MVTecAD", "init_args": {"rot": 1}}):
            with pytest.raises(ValueError, match=r"datamodule=.*is not the configuration of a"):
                NoisyDataModule(wrong)

    def test_a_test_set_without_labels_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"test_type=.*private.*has no labels"):
            NoisyDataModule(MVTecAD2(root=tmp_path, test_type="private"))

    def test_the_noise_is_unknown_before_setup(self, nut: Callable) -> None:
        datamodule = NoisyDataModule(nut())
        for read in (
            lambda: datamodule.noise,
            lambda: datamodule.truth,
            lambda: datamodule.write_manifest("x.csv"),
            lambda: datamodule.noise_share,
        ):
            with pytest.raises(RuntimeError, match="Call setup"):
                read()


class TestSplits:
    @pytest.mark.parametrize(
        ("test_split_mode", "val_split_mode", "overlap"),
        [
            *product(["from_dir"], ["none", "same_as_test", "from_train", "from_test", "synthetic"], [False, True]),
            *product(["none"], ["same_as_test", "from_test", "synthetic"], [False]),
            *product(["synthetic"], ["none", "from_test", "synthetic"], [False]),
            ("synthetic", "from_train", True),
        ],
    )
    def test_all_split_modes(self, nut: Callable, test_split_mode: str, val_split_mode: str, overlap: bool) -> None:
        modes = {"test_split_mode": test_split_mode, "val_split_mode": val_split_mode}
        clean = nut(**modes)
        seed_everything(0)  # Anomalib makes synthetic images from the global generators
        clean.setup()
        seed_everything(0)
        datamodule = noisy(nut(**modes), noise_ratio=0.1, overlap=overlap)
        assert (datamodule.test_split_mode, datamodule.val_split_mode) == (clean.test_split_mode, clean.val_split_mode)
        normal = len(clean.train_data)
        injected = set(datamodule.noise["image_path"])
        assert len(injected) == int(0.1 * normal) > 0
        assert len(datamodule.train_data) == normal + len(injected)
        assert hasattr(datamodule, "val_data") == hasattr(clean, "val_data") == (val_split_mode != "none")
        for subset in ("test_data", "val_data"):
            if hasattr(clean, subset):
                ours, theirs = getattr(datamodule, subset), getattr(clean, subset)
                assert names(paths(theirs)) - names(injected) <= names(paths(ours)) <= names(paths(theirs))
                if overlap:
                    assert names(paths(ours)) == names(paths(theirs))
                else:
                    assert not injected & set(paths(ours))
                assert ours[0].image.shape[-2:] == (24, 32)
        assert datamodule.test_data.has_anomalous
        assert all(item.gt_label == 0 for item in datamodule.train_data)

    def test_noise_from_synthetic_images_cannot_be_reproduced_which_is_logged(
        self,
        nut: Callable,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.WARNING):
            noisy(nut(test_split_mode="synthetic"), noise_ratio=0.1)
        assert "generates new anomalous test images in each run" in caplog.text

    def test_options_of_the_dataloaders_are_the_wrapped_ones(self, nut: Callable) -> None:
        wrapped = nut(train_batch_size=3, eval_batch_size=5, val_split_ratio=0.3, test_split_ratio=0.4)
        wrapped.num_workers = 1
        wrapped.external_collate_fn = ImageBatch.collate
        datamodule = NoisyDataModule(wrapped)
        names = ("train_batch_size", "eval_batch_size", "num_workers", "val_split_ratio", "test_split_ratio")
        for name in (*names, "external_collate_fn"):
            assert getattr(datamodule, name) == getattr(wrapped, name)

    def test_an_external_collate_function_is_used(self, nut: Callable) -> None:
        datamodule = noisy(nut(), noise_ratio=0.1)
        datamodule.external_collate_fn = len
        assert sum(datamodule.train_dataloader()) == 22

    def test_augmentations_and_the_models_resize_reach_injected_images(self, nut: Callable) -> None:
        flip = RandomHorizontalFlip(p=1)
        plain = noisy(nut(), noise_ratio=0.6, overlap=True)
        flipped = noisy(nut(train_augmentations=flip), noise_ratio=0.6, overlap=True)
        for index in (0, NORMAL, NORMAL + 11):  # normal, injected, repeated
            assert torch.equal(flipped.train_data[index].image.flip(-1), plain.train_data[index].image)
        assert torch.equal(flipped.test_data[0].image, plain.test_data[0].image)

        transform = Compose([Resize((8, 10))])
        flipped.trainer = SimpleNamespace(model=SimpleNamespace(pre_processor=SimpleNamespace(transform=transform)))
        flipped.setup()
        assert flipped.train_data[NORMAL + 11].image.shape == (3, 8, 10)
        assert flipped.test_data[0].image.shape == (3, 8, 10)


class TestOtherSets:
    def test_a_set_without_masks(self, root: Path, tmp_path: Path) -> None:
        folders = {"normal_dir": "train/good", "abnormal_dir": "test/cut", "normal_test_dir": "test/good"}
        wrapped = Folder(name="nuts", root=root / "nut", **folders, num_workers=0, seed=0)
        datamodule = noisy(wrapped, noise_ratio=0.4, overlap=True)
        assert datamodule.task == "classification"
        assert datamodule.name == "nuts-noise40-overlap-seed0"
        assert Counter(datamodule.noise["repeat"]) == {0: 5, 1: 3}
        assert all(source.startswith("test/cut/") for source in datamodule.noise["source"])
        assert (datamodule.noise["mask_path"] == "").all()
        batch = next(iter(datamodule.train_dataloader()))
        assert batch.gt_mask is None
        assert not batch.gt_label.any()
        assert datamodule.true_mask(datamodule.noise["image_path"].iloc[-1]) is None
        manifest = datamodule.write_manifest(tmp_path / "noise.csv")
        again = noisy(Folder(name="nuts", root=root / "nut", **folders, num_workers=0), manifest=manifest)
        assert torch.equal(again.train_data[-1 + len(again.train_data)].image, datamodule.train_data[27].image)

    def test_a_set_without_a_root(self, root: Path) -> None:
        folders = {
            "normal_dir": root / "nut/train/good",
            "abnormal_dir": [root / "nut/test/cut", root / "nut/test/hole"],
        }
        wrapped = Folder(name="nuts", **folders, num_workers=0, seed=0, normal_test_dir=root / "nut/test/good")
        datamodule = noisy(wrapped, noise_ratio=0.4, overlap=True)
        assert {Path(source).parts[0] for source in datamodule.noise["source"]} == {"cut", "hole"}

    @pytest.mark.filterwarnings("ignore:The .future.infer_string. option is deprecated")
    def test_an_image_with_several_masks(self, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root / "nut/train/good", tmp_path / "box/train/good")
        shutil.copytree(root / "nut/train/good", tmp_path / "box/validation/good")
        shutil.copytree(root / "nut/test/good", tmp_path / "box/test/good")
        shutil.copytree(root / "nut/test/hole", tmp_path / "box/test/logical_anomalies")
        for number in range(3):
            for part in range(2):
                mask = np.zeros((24, 32), np.uint8)
                mask[4:8, 10 * part : 10 * part + 4] = 255
                save(mask, tmp_path / f"box/ground_truth/logical_anomalies/{number:03}/{part:03}.png")
        with pd.option_context("future.infer_string", False):  # Anomalib 2.7 cannot read it with pandas 3 strings
            datamodule = noisy(MVTecLOCO(root=tmp_path, category="box", num_workers=0), noise_ratio=0.3, overlap=True)
        assert len(datamodule.noise) == 6
        assert all(item.gt_mask.sum() == 0 for item in datamodule.train_data)
        for path, repeat in datamodule.noise[["image_path", "repeat"]].itertuples(index=False):
            mask = datamodule.true_mask(path)
            assert mask[5, 2] == mask[5, 12] == 1
            assert mask[5, 7] == 0
            assert mask.sum() == 32 or repeat
        assert ";" in datamodule.write_manifest(tmp_path / "noise.csv").read_text()


class TestManifest:
    @pytest.mark.parametrize(("ratio", "overlap"), [(0.3, False), (0.9, True), (0, True)])
    def test_a_manifest_gives_the_same_noise_again(
        self,
        nut: Callable,
        tmp_path: Path,
        ratio: float,
        overlap: bool,
    ) -> None:
        first = noisy(nut(), noise_ratio=ratio, overlap=overlap, seed=7)
        path = first.write_manifest(tmp_path / "noise.csv")
        second = noisy(nut(), manifest=path)
        assert paths(second.test_data) == paths(first.test_data)
        assert len(second.train_data) == len(first.train_data)
        for one, two in zip(first.train_data, second.train_data, strict=True):
            assert torch.equal(one.image, two.image)
        assert second.write_manifest(tmp_path / "again.csv").read_text() == path.read_text()
        assert (second.noise_ratio, second.overlap) == (ratio, overlap)
        assert second.name == "MVTecAD-noise"

    def test_paths_are_relative_to_the_root_with_slashes(self, nut: Callable, tmp_path: Path) -> None:
        noisy(nut(), noise_ratio=0.05).write_manifest(tmp_path / "noise.csv")
        header, row = (tmp_path / "noise.csv").read_text().splitlines()
        assert header == "image_path,repeat,angle,shift_x,shift_y,mask_path,in_test"
        assert row == "nut/test/cut/003.png,0,0.0,0.0,0.0,nut/ground_truth/cut/003_mask.png,False"

    def test_missing_images_are_named(self, nut: Callable, tmp_path: Path) -> None:
        path = noisy(nut(), noise_ratio=0.2).write_manifest(tmp_path / "noise.csv")
        path.write_text(path.read_text().replace("hole/", "gap/"))
        with pytest.raises(ValueError, match=r"lists \d images that are not anomalous.*'nut/test/gap/"):
            noisy(nut(), manifest=path)

    def test_a_repeat_that_is_not_moved_is_an_image_of_its_own(self, nut: Callable, tmp_path: Path) -> None:
        rows = ["image_path,repeat,angle,shift_x,shift_y,in_test"]
        rows += [f"nut\\test\\cut\\000.png,{repeat},0,0,0,True" for repeat in range(3)]
        (tmp_path / "noise.csv").write_text("\n".join(rows))
        datamodule = noisy(nut(), manifest=tmp_path / "noise.csv")
        assert datamodule.truth.index.is_unique
        images = [datamodule.train_data[index].image for index in range(NORMAL, NORMAL + 3)]
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])

    def test_one_image_must_remain_in_the_test_set(self, nut: Callable, tmp_path: Path) -> None:
        path = noisy(nut(), noise_ratio=0.4, overlap=True).write_manifest(tmp_path / "noise.csv")
        path.write_text(path.read_text().replace("True", "False"))
        with pytest.raises(ValueError, match="At least one must remain"):
            noisy(nut(), manifest=path)

    def test_a_missing_manifest_is_named_at_once(self, nut: Callable, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"manifest=.*nothing\.csv"):
            NoisyDataModule(nut(), manifest=tmp_path / "nothing.csv")


class TestImageList:
    """Published lists, which are written by hand and not by the package."""

    NOISE = ("test/cut/003.png", "test/hole/001.png", "test/cut/000.png")

    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[..., Path]:
        def write(*lines: str, name: str = "list.csv") -> Path:
            (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            return tmp_path / name

        return write

    def published(self, *kept: int) -> list[str]:
        """Return lines of a list with these normal training images, the noise, and images of another category."""
        normal = [f"nut/train/good/{number:03}.png,nut" for number in kept]
        others = ["zipper/train/good/002.png,zipper", "zipper/test/teeth/000.png,zipper"]
        return ["filename,clsname", *normal, others[0], *(f"nut/{path},nut" for path in self.NOISE), others[1]]

    @pytest.mark.parametrize("overlap", [False, True])
    def test_a_published_list(self, nut: Callable, root: Path, write: Callable, overlap: bool) -> None:
        path = write(*self.published(*range(NORMAL)), name="train_set_nr15_seed_0.csv")
        datamodule = noisy(nut(), manifest=path, overlap=overlap, noise_ratio=0.7, seed=5)
        assert list(datamodule.noise["image_path"]) == [str(root / "nut" / each) for each in self.NOISE]
        assert len(datamodule.train_data) == NORMAL + 3
        assert datamodule.truth["true_label_index"].sum() == 3
        assert {item.gt_label.item() for item in datamodule.train_data} == {0}
        assert (datamodule.true_mask(str(root / "nut/test/cut/003.png"))).sum() == 9 * 12
        tested = {Path(each).relative_to(root / "nut").as_posix() for each in paths(datamodule.test_data)}
        assert len(tested) == (14 if overlap else 11)
        assert (set(self.NOISE) <= tested) == overlap
        assert (datamodule.noise_ratio, datamodule.overlap) == (3 / NORMAL, overlap)
        assert datamodule.noise_share == pytest.approx(3 / 23)
        assert datamodule.name == "MVTecAD-train_set_nr15_seed_0"

    def test_normal_images_that_the_list_leaves_out_are_left_out(
        self, nut: Callable, root: Path, write: Callable, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            datamodule = noisy(nut(), manifest=write(*self.published(0, 1, 7, 11)))
        normal = [path for path in paths(datamodule.train_data) if "train" in path]
        assert normal == [str(root / f"nut/train/good/{number:03}.png") for number in (0, 1, 7, 11)]
        assert len(datamodule.train_data) == 7
        assert datamodule.noise_ratio == 3 / 4
        assert "16 normal training images are left out" in caplog.text

    def test_a_list_of_only_normal_images_is_a_clean_training_set(self, nut: Callable, write: Callable) -> None:
        lines = ["filename,clsname", *(f"nut/train/good/{number:03}.png,nut" for number in range(12))]
        datamodule = noisy(nut(), manifest=write(*lines))
        assert datamodule.noise.empty
        assert (len(datamodule.train_data), datamodule.noise_share) == (12, 0)

    @pytest.mark.parametrize(
        ("relative_to", "header"),
        [("root", ()), ("category", ("path",)), ("absolute", ("filename",)), ("windows", ("image_path",))],
    )
    def test_a_list_of_noise_keeps_all_normal_images(
        self, nut: Callable, root: Path, write: Callable, relative_to: str, header: tuple[str, ...]
    ) -> None:
        prefix = {"root": "nut/", "category": "", "absolute": f"{root}/nut/", "windows": "nut\\"}[relative_to]
        lines = [prefix + (each.replace("/", "\\") if relative_to == "windows" else each) for each in self.NOISE]
        others = ["zipper/test/teeth/000.png", "/elsewhere/zipper/test/teeth/000.png"]
        datamodule = noisy(nut(), manifest=write(*header, *lines, *others, "", lines[0], name="noise.txt"))
        assert [Path(path).relative_to(root / "nut").as_posix() for path in datamodule.noise["image_path"]] == [
            *self.NOISE
        ]
        assert len(datamodule.train_data) == NORMAL + 3

    def test_paths_with_a_comma_and_a_folder_behind_a_link(self, root: Path, tmp_path: Path, write: Callable) -> None:
        shutil.copytree(root / "nut", tmp_path / "real/nut")
        (tmp_path / "real/nut/test/hole").rename(tmp_path / "real/nut/test/hole, big")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        folders = {
            "normal_dir": "train/good",
            "abnormal_dir": ["test/cut", "test/hole, big"],
            "normal_test_dir": "test/good",
        }
        for number, line in enumerate(["test/hole, big/001.png", '"test/hole, big/001.png"']):
            for header in ([], ["filename"]) if number else ([],):
                path = write(*header, line, f"{tmp_path}/link/nut/test/cut/002.png")
                wrapped = Folder(name="nuts", root=tmp_path / "link/nut", **folders, num_workers=0)
                assert len(noisy(wrapped, manifest=path, overlap=True).noise) == 2

    def test_the_manifest_of_a_list_gives_the_same_run_again(
        self, nut: Callable, tmp_path: Path, write: Callable
    ) -> None:
        first = noisy(nut(), manifest=write(*(f"nut/{path}" for path in self.NOISE), name="noise.txt"))
        again = noisy(nut(), manifest=first.write_manifest(tmp_path / "manifest.csv"))
        for subset in ("train_data", "test_data"):
            assert paths(getattr(again, subset)) == paths(getattr(first, subset))

    def test_a_fit_writes_a_manifest_next_to_a_list_in_the_same_folder(
        self, nut: Callable, tmp_path: Path, write: Callable
    ) -> None:
        path = write(*(f"nut/{path}" for path in self.NOISE), name="noise.csv")
        before = path.read_text()
        datamodule = NoisyDataModule(nut(), manifest=path)
        datamodule.trainer = SimpleNamespace(default_root_dir=str(tmp_path), is_global_zero=True, model=None)
        datamodule.setup("fit")
        assert path.read_text() == before
        assert list(pd.read_csv(tmp_path / "manifest-noise.csv")["image_path"]) == [
            f"nut/{path}" for path in self.NOISE
        ]

    @pytest.mark.parametrize("val_split_mode", ["from_test", "from_train"])
    def test_images_that_went_into_the_validation_set(
        self, nut: Callable, write: Callable, val_split_mode: str
    ) -> None:
        """Those from the test set are noise like the others; those from the training set stay in validation."""
        clean = nut(val_split_mode=val_split_mode)
        clean.setup()
        path = write(*self.published(*range(NORMAL)))
        datamodule = noisy(nut(val_split_mode=val_split_mode), manifest=path)
        assert len(datamodule.noise) == 3
        assert len(datamodule.train_data) == len(clean.train_data) + 3
        assert not set(datamodule.noise["image_path"]) & {*paths(datamodule.test_data), *paths(datamodule.val_data)}

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["nut/test/cut/000.png", "nut/test/cut/999.png"], r"lists 1 images that MVTecAD does not.*cut/999.png'"),
            (["test/cut/000.png", "test/gap/000.png"], r"lists 1 images that MVTecAD does not have.*'test/gap/000"),
            (["filename,clsname", "gap/000.png,nut"], r"lists 1 images that MVTecAD does not have.*complete the data"),
            (["nut/test/cut/000.png", "nut/test/good/000.png"], r"lists 1 images of the test set that are not anom"),
            (["zipper/test/teeth/000.png"], r"lists no image of .*nut\. Give a list of this dataset and category"),
            (["filename,clsname", "nut/test/cut/000.png,zipper"], "lists no image of"),
            (["filename"], "lists no image of"),
            (["image,label", "nut/test/cut/000.png,1"], r"has the columns \['image', 'label'\].*needs the column"),
            (
                [
                    f"test/{kind}/{number:03}.png"
                    for kind, count in (("cut", 5), ("hole", 3))
                    for number in range(count)
                ],
                "At least one must remain",
            ),
        ],
    )
    def test_a_list_that_does_not_fit_is_refused(
        self, nut: Callable, write: Callable, lines: list[str], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message) as error:
            noisy(nut(), manifest=write(*lines))
        assert "\n" not in str(error.value)


class TestNames:
    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({}, "MVTecAD-noise10-no_overlap-seed0"),
            ({"overlap": True, "seed": 3}, "MVTecAD-noise10-overlap-seed3"),
            ({"noise_ratio": 0.075}, "MVTecAD-noise7.5-no_overlap-seed0"),
            ({"noise_ratio": 0.29}, "MVTecAD-noise29-no_overlap-seed0"),
            ({"noise_ratio": 0}, "MVTecAD-noise0-no_overlap-seed0"),
        ],
    )
    def test_results_of_different_noise_have_different_folders(self, nut: Callable, options: dict, name: str) -> None:
        datamodule = NoisyDataModule(nut(), **options)
        assert datamodule.name == name
        assert datamodule.category == "nut"

    def test_the_category_can_be_changed(self, nut: Callable) -> None:
        datamodule = NoisyDataModule(nut())
        datamodule.category = "bolt"
        assert datamodule.datamodule.category == "bolt"


LOADING = {"train_batch_size": 3, "eval_batch_size": 5, "num_workers": 1}


class TestConfiguration:
    def test_batch_sizes_and_workers_reach_the_wrapped_datamodule(self, nut: Callable) -> None:
        datamodule = noisy(nut(), **LOADING)
        for each in (datamodule, datamodule.datamodule):
            assert {name: getattr(each, name) for name in LOADING} == LOADING
        assert datamodule.train_dataloader().batch_size == 3
        assert datamodule.train_dataloader().num_workers == 1
        assert datamodule.val_dataloader().batch_size == datamodule.test_dataloader().batch_size == 5

    def test_those_of_the_wrapped_datamodule_are_the_default(self, nut: Callable) -> None:
        datamodule = NoisyDataModule(nut(train_batch_size=7, eval_batch_size=9), num_workers=0)
        assert (datamodule.train_batch_size, datamodule.eval_batch_size, datamodule.num_workers) == (7, 9, 0)

    def test_batch_sizes_through_from_config(self, config: dict[str, Any], tmp_path: Path) -> None:
        """They are set as in Anomalib's own tests of datamodules."""
        data = {"class_path": "NoisyDataModule", "init_args": {"datamodule": config}}
        (tmp_path / "data.yaml").write_text(json.dumps(data))  # JSON is YAML
        options = {f"data.{name}": value for name, value in LOADING.items()}
        datamodule = NoisyDataModule.from_config(tmp_path / "data.yaml", **options)
        assert {name: getattr(datamodule.datamodule, name) for name in LOADING} == LOADING

    @pytest.fixture
    def config(self, root: Path) -> dict[str, Any]:
        resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [8, 8]}}
        init_args = {"root": str(root), "category": "nut", "num_workers": 0, "augmentations": resize}
        return {"class_path": "MVTecAD", "init_args": init_args}

    @pytest.mark.parametrize(("make", "name"), [(dict, "MVTecAD"), (OmegaConf.create, "anomalib.data.MVTecAD")])
    def test_nested_mappings(self, config: dict, make: Callable, name: str) -> None:
        datamodule = noisy(make({**config, "class_path": name}), noise_ratio=0.1)
        assert len(datamodule.train_data) == 22
        assert datamodule.train_data[21].image.shape == (3, 8, 8)

    def test_get_datamodule(self, config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("anomalib.data.NoisyDataModule", NoisyDataModule, raising=False)  # as registration does
        data = {
            "class_path": "NoisyDataModule",
            "init_args": {"datamodule": config, "noise_ratio": 0.1, "overlap": True},
        }
        for whole in (data, {"data": data}, OmegaConf.create(data)):
            datamodule = get_datamodule(whole)
            datamodule.setup()
            assert (len(datamodule.train_data), len(datamodule.test_data)) == (22, 14)

    def test_command_line(self, root: Path) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(MVTecAD.__bases__[0], "data")
        options = ["--data.datamodule=MVTecAD", f"--data.datamodule.root={root}", "--data.datamodule.category=nut"]
        more = ["--data.noise_ratio=0.1", "--data.overlap=true", "--data.seed=2"]
        parsed = parser.parse_args(["--data=NoisyDataModule", *options, *more])
        datamodule = parser.instantiate_classes(parsed).data
        assert datamodule.name == "MVTecAD-noise10-overlap-seed2"
        assert str(datamodule.datamodule.root) == str(root)
