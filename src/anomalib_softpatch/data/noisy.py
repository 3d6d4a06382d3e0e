# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Anomalous images among the training images, on purpose: the protocols "overlap" and "no overlap".

The protocols are from the SoftPatch papers (Jiang et al., NeurIPS 2022; Wang et al., Pattern Recognition 2025).
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from anomalib.data import ADAM3D, AnomalibDataModule, Folder3D, MVTec3D
from anomalib.data.datamodules.base.video import AnomalibVideoDataModule
from anomalib.data.datasets.base import AnomalibDepthDataset, AnomalibVideoDataset
from anomalib.data.utils import LabelName, Split, ValSplitMode, read_mask
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from typing_extensions import override

from anomalib_softpatch.data.manifest import LIST_COLUMNS, read_noise_file, write_manifest
from anomalib_softpatch.data.noise import NOISE_COLUMNS, largest_ratio, rotate_and_shift, select_noise
from anomalib_softpatch.images.paths import real_folder
from anomalib_softpatch.instantiate import instantiate
from anomalib_softpatch.options import check

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataset

logger = logging.getLogger(__name__)


class NoisyDataModule(AnomalibDataModule):
    """Any Anomalib image datamodule, with anomalous images among its training images.

    ``int(noise_ratio * N)`` anomalous test images join the training images. N is the number of normal images that
    the wrapped datamodule trains with, after its own splits. The training pipeline treats the injected images as
    normal (``label_index`` 0, empty mask). Their true labels and masks are in :attr:`noise` and :attr:`truth`, in the
    columns ``true_label_index`` and ``true_mask_path`` of ``train_data.samples``, and in :meth:`true_mask`.

    The choice of the injected images depends on the seed, the ratio and the anomalous images of the test set, including
    those that ``val_split_mode=from_test`` moves to the validation set. The images injected at one ratio are also
    injected at every higher ratio, and they are the same under both protocols.

    Repeated images are written to a temporary folder, which is removed with the datamodule. Its name differs between
    processes, so a training image is identified by its row number in ``train_data.samples``: first the images that the
    wrapped datamodule trains with, sorted by path, then the injected ones in the order of injection.

    With a published list of images (``manifest=``), its anomalous test images are the noise. If it also lists normal
    training images, all other normal training images are left out. The list does not determine the test set:
    ``overlap`` does.

    The splits and augmentations are those of the wrapped datamodule, and so are batch sizes and workers unless they are
    given here. The datasets of the wrapped datamodule are not changed.

    Args:
        datamodule: Image datamodule to wrap, or its configuration: a mapping with ``class_path`` and ``init_args``.
        noise_ratio: Number of injected images per normal training image, 0 or more.
        overlap: Keep the injected images in the test and validation sets. Otherwise they are removed from both, and at
            least one anomalous image must remain to test with.
        resample: Repeat images if there are too few, each repetition rotated by up to 3 degrees and shifted by up to
            3 %. Only with ``overlap=True``.
        seed: Seed of the choice, 0 or more. The splits depend on the seed of the wrapped datamodule instead.
        manifest: File that lists the images to inject (see :mod:`anomalib_softpatch.data.manifest`). Either the CSV
            file that an earlier run wrote, which also determines the images that stay in the test set: ``noise_ratio``,
            ``overlap``, ``resample`` and ``seed`` are then not used, and ``setup`` sets the first two to match the
            manifest. Or a published list of images, with which ``overlap`` is used as given. Rows of other categories
            are ignored, and an image that is listed twice counts once.
        train_batch_size: Images in a training batch. Default: that of the wrapped datamodule. A value given here is
            also set in the wrapped datamodule; the same holds for the next two.
        eval_batch_size: Images in a batch of the validation and test sets.
        num_workers: Processes that read images.

    Raises:
        TypeError: If ``datamodule`` is not an image datamodule.
        ValueError: If an argument is out of range, or (in ``setup``) if there are too few images.
        FileNotFoundError: If there is no such manifest or list.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib_softpatch.data import NoisyDataModule
        >>> datamodule = NoisyDataModule(MVTecAD(category="screw"), noise_ratio=0.1, overlap=True)
        >>> datamodule.name
        'MVTecAD-noise10-overlap-seed0'
    """

    seed: int

    def __init__(
        self,
        datamodule: AnomalibDataModule,
        noise_ratio: float = 0.1,
        overlap: bool = False,
        resample: bool = True,
        seed: int = 0,
        manifest: str | Path | None = None,
        train_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        datamodule = _as_image_datamodule(datamodule)
        check(noise_ratio=noise_ratio, seed=seed)
        given = {"train_batch_size": train_batch_size, "eval_batch_size": eval_batch_size, "num_workers": num_workers}
        for name, value in given.items():
            if value is not None:
                setattr(datamodule, name, value)
        super().__init__(
            train_batch_size=datamodule.train_batch_size,
            eval_batch_size=datamodule.eval_batch_size,
            num_workers=datamodule.num_workers,
            train_augmentations=datamodule.train_augmentations,
            val_augmentations=datamodule.val_augmentations,
            test_augmentations=datamodule.test_augmentations,
            val_split_mode=datamodule.val_split_mode,
            val_split_ratio=datamodule.val_split_ratio,
            test_split_mode=datamodule.test_split_mode,
            test_split_ratio=datamodule.test_split_ratio,
            seed=seed,
        )
        self.datamodule = datamodule
        self.external_collate_fn = datamodule.external_collate_fn
        self.noise_ratio = noise_ratio
        self.overlap = overlap
        self.resample = resample
        self.manifest = None if manifest is None else Path(manifest)
        self._listed_noise = None if self.manifest is None else read_noise_file(self.manifest)
        self._manifest_rows: pd.DataFrame | None = None
        self._noise: pd.DataFrame | None = None
        self._repeats: TemporaryDirectory[str] | None = None

    @property
    def name(self) -> str:  # type: ignore[override]  # a property in Anomalib, too
        """Name of the results folder, for example ``MVTecAD-noise10-no_overlap-seed0``.

        With a manifest or a list, it ends with the name of that file.
        """
        return f"{self.datamodule.name}-{self._label}"

    @property
    def _has_list(self) -> bool:
        """Whether the noise comes from a published list of images and not from a manifest."""
        return self._listed_noise is not None and tuple(self._listed_noise) == LIST_COLUMNS

    @property
    def _label(self) -> str:
        """Description of the noise in names of folders and files."""
        if self.manifest is not None:
            return self.manifest.stem
        return f"noise{100 * self.noise_ratio:g}-{'overlap' if self.overlap else 'no_overlap'}-seed{self.seed}"

    @property
    def category(self) -> str:
        """Category of the wrapped datamodule."""
        return self.datamodule.category

    @category.setter
    def category(self, category: str) -> None:
        self.datamodule.category = category

    @property
    def noise(self) -> pd.DataFrame:
        """The injected images, one row each, in the order of injection.

        Columns: ``image_path`` and ``mask_path`` (files of the training set; the mask path is empty for an image
        without a mask, and a list for an image with several), ``source`` (the image's path relative to the dataset's
        root), ``repeat``, ``angle``, ``shift_x``, ``shift_y`` (see
        :func:`anomalib_softpatch.data.noise.select_noise`) and ``in_test``.
        """
        return self._after_setup(self._noise)

    @property
    def noise_share(self) -> float:
        """Share of the injected images among all training images, in [0, 1).

        ``noise_ratio`` is relative to the normal images: a ratio of 40 % is a share of 28.6 %.
        """
        return len(self.noise) / len(self.train_data)

    @property
    def truth(self) -> pd.DataFrame:
        """The truth about every training image: ``true_label_index`` (0 or 1), ``true_mask_path`` by ``image_path``."""
        self._after_setup(self._noise)
        return self.train_data.samples.set_index("image_path")[["true_label_index", "true_mask_path"]]

    def true_mask(self, image_path: str) -> torch.Tensor | None:
        """Read the true mask of a training image, given its path in batches.

        Returns:
            Mask of shape ``(H, W)`` with 1 where the image is anomalous, ``uint8``; ``None`` if the image is normal or
            the dataset has no masks.
        """
        mask_path = self.truth.at[image_path, "true_mask_path"]
        return _read_masks(mask_path) if len(mask_path) else None

    def image_key(self, image_path: str) -> str:
        """Return a name that a training image has in every process: its path, or that in the temporary folder."""
        folder = None if self._repeats is None else Path(self._repeats.name)
        path = Path(image_path)
        return path.relative_to(folder).as_posix() if folder and path.is_relative_to(folder) else str(image_path)

    def write_manifest(self, path: str | Path) -> Path:
        """Write the manifest of the injected images (see :mod:`anomalib_softpatch.data.manifest`)."""
        return write_manifest(self._after_setup(self._manifest_rows), path)

    @staticmethod
    def _after_setup(table: pd.DataFrame | None) -> pd.DataFrame:
        if table is None:
            msg = "The injected images are chosen in setup(). Call setup() first."
            raise RuntimeError(msg)
        return table

    @override
    def prepare_data(self) -> None:
        self.datamodule.prepare_data()

    @override
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage == TrainerFn.FITTING and self.trainer is not None and self.trainer.is_global_zero:
            file_name = f"manifest-{self._label}.csv"
            if self.manifest is not None and not self._has_list:
                file_name = self.manifest.name
            path = self.write_manifest(Path(self.trainer.default_root_dir) / file_name)
            logger.info("Manifest of the injected images: %s", path)

    def _setup(self, _stage: str | None = None) -> None:
        """Take the datasets of the wrapped datamodule with its splits, and inject the noise."""
        self.datamodule.setup(_stage)
        for subset in ("train_data", "val_data", "test_data"):
            if hasattr(self.datamodule, subset):
                setattr(self, subset, getattr(self.datamodule, subset))
        if isinstance(self.train_data, AnomalibDepthDataset | AnomalibVideoDataset):
            msg = _not_images_message(self.datamodule)
            raise TypeError(msg)
        pool = self._anomalous_images()
        rows = self._select(pool) if self._listed_noise is None else self._take(pool, self._listed_noise)
        self._manifest_rows = rows.assign(mask_path=pool.loc[rows["image_path"], "relative_mask_path"].to_numpy())
        self._noise = self._join_training_set(rows, pool)
        removed = set(pool.loc[rows.loc[~rows["in_test"], "image_path"].unique(), "image_path"])
        if removed:
            self.test_data = _without(self.test_data, removed)
            if hasattr(self, "val_data"):
                self.val_data = _without(self.val_data, removed)
            if not self.test_data.has_anomalous:  # only possible with a manifest or a list
                msg = f"manifest={str(self.manifest)!r} takes all anomalous images. At least one must remain to test."
                raise ValueError(msg)
        share = f"{100 * self.noise_share:.1f} % of its {len(self.train_data)} training images"
        logger.info("Injected %d images into %s: %s.", len(rows), self.datamodule.name, share)

    def _create_test_split(self) -> None:
        """Do nothing, because the wrapped datamodule has split its datasets."""

    def _create_val_split(self) -> None:
        """Do nothing, because the wrapped datamodule has split its datasets."""

    def _anomalous_images(self) -> pd.DataFrame:
        """Return the samples that can be injected, by path relative to the root; ``tested`` if in the test set."""
        subsets = {"test": self.test_data}
        if self.val_split_mode == ValSplitMode.FROM_TEST:
            subsets["val"] = self.val_data
        if self.noise_ratio and isinstance(self.test_data, SyntheticAnomalyDataset):
            consequence = "another run injects different images, even with the same seed or manifest"
            logger.warning("%s generates new anomalous test images in each run: %s.", self.datamodule.name, consequence)
        samples = pd.concat([data.samples.assign(tested=name == "test") for name, data in subsets.items()])
        samples = samples[samples["label_index"] == LabelName.ABNORMAL]
        root = _common_root(samples["image_path"], getattr(self.datamodule, "root", None))
        samples["relative_mask_path"] = [_relative(path, root) for path in samples["mask_path"]]
        samples.index = [_relative(path, root) for path in samples["image_path"]]
        return samples[~samples.index.duplicated()]

    def _select(self, pool: pd.DataFrame) -> pd.DataFrame:
        """Choose the images by ratio, protocol and seed."""
        normal = self._normal_count()
        count = int(self.noise_ratio * normal)
        available = len(pool)
        advice = ""
        if not self.overlap and available:
            # All images before the last one of the test set can be taken
            order = select_noise(list(pool.index), available, self.seed)["image_path"]
            available = int(pool.loc[order, "tested"].to_numpy().nonzero()[0].max(initial=0))
            advice = " because one must remain in the test set (with overlap=True, all stay there)"
        elif not self.resample:
            advice = " (with resample=True, images repeat)"
        if count > available and not (self.overlap and self.resample and available):
            msg = (
                f"noise_ratio={self.noise_ratio} requires {count} anomalous images ({self.datamodule.name} has "
                f"{normal} normal training images), but only {available} can be injected{advice}. "
                f"The largest possible ratio is {largest_ratio(available, normal)}."
            )
            raise ValueError(msg)
        return select_noise(list(pool.index), count, self.seed).assign(in_test=self.overlap)

    def _take(self, pool: pd.DataFrame, listed: pd.DataFrame) -> pd.DataFrame:
        """Take the images of a manifest or a list."""
        rows = self._take_list(pool, listed) if self._has_list else self._take_manifest(pool, listed)
        unused = "noise_ratio, resample and seed" if self._has_list else "noise_ratio, overlap, resample and seed"
        logger.info("The noise is that of %s; %s are not used.", self.manifest, unused)
        self.noise_ratio = len(rows) / max(self._normal_count(), 1)
        return rows

    def _take_manifest(self, pool: pd.DataFrame, listed: pd.DataFrame) -> pd.DataFrame:
        """Take the images of a manifest."""
        unknown = sorted(set(listed["image_path"]) - set(pool.index))
        if unknown:
            msg = (
                f"manifest={str(self.manifest)!r} lists {len(unknown)} images that are not anomalous test images "
                f"of {self.datamodule.name}, for example {unknown[0]!r}. Paths are relative to the dataset's "
                "root. Is it the manifest of this dataset and category?"
            )
            raise ValueError(msg)
        self.overlap = bool(listed["in_test"].all())
        return listed.drop(columns="mask_path")

    def _take_list(self, pool: pd.DataFrame, listed: pd.DataFrame) -> pd.DataFrame:
        """Take the anomalous images of a list as rows of a manifest, and train only with its normal images, if any."""
        subset_of, found = self._listed_images(listed)
        keys = dict(zip(map(real_folder, pool["image_path"]), pool.index, strict=True))
        normal = [path for path in found if path not in keys and subset_of[path] == "test"]
        if normal:
            msg = (
                f"manifest={str(self.manifest)!r} lists {len(normal)} images of the test set that are not anomalous, "
                f"for example {str(normal[0])!r}. Noise consists of anomalous test images: remove the others from the "
                "list."
            )
            raise ValueError(msg)
        trained = {path for path in found if path not in keys and subset_of[path] == "train"}
        paths = self.train_data.samples["image_path"] if trained else []
        left_out = {path for path in paths if real_folder(path) not in trained}
        if left_out:
            self.train_data = _without(self.train_data, left_out)
            name = f"manifest={str(self.manifest)!r}"
            logger.info("%d normal training images are left out because %s does not list them.", len(left_out), name)
        rows = pd.DataFrame({"image_path": [keys[path] for path in found if path in keys]}, dtype=object)
        return rows.assign(repeat=0, angle=0.0, shift_x=0.0, shift_y=0.0, in_test=self.overlap)[
            [*NOISE_COLUMNS, "in_test"]
        ]

    def _listed_images(self, listed: pd.DataFrame) -> tuple[dict[Path, str], list[Path]]:
        """Return the subset of each image (``test`` also for validation images from it), and the listed images."""
        datasets = {"train": self.train_data, "test": self.test_data}
        if self.val_split_mode == ValSplitMode.FROM_TRAIN:
            datasets["val"] = self.val_data
        subset_of = {real_folder(path): name for name, data in datasets.items() for path in data.samples["image_path"]}
        if self.val_split_mode == ValSplitMode.FROM_TEST:
            subset_of |= {real_folder(path): "test" for path in self.val_data.samples["image_path"]}
        folder = Path(os.path.commonpath({path.parent for path in subset_of}))
        top_folders = {path.relative_to(folder).parts[:1] for path in subset_of}
        places = (folder, *folder.parents)  # paths may be relative to the category's folder or the dataset's root

        found: dict[Path, None] = {}
        unknown = []
        for path, category in listed.itertuples(index=False):
            if category and self.category and category != self.category:
                continue
            candidates = [real_folder(os.path.normpath(place / path)) for place in places]
            known = next((candidate for candidate in candidates if candidate in subset_of), None)
            if known is not None:
                found[known] = None
            elif (
                (category and category == self.category)
                or any(candidate.is_relative_to(folder) for candidate in candidates[1:])
                or Path(path).parts[:1] in top_folders
            ):
                unknown.append(path)
        name = f"manifest={str(self.manifest)!r}"
        if unknown:
            msg = (
                f"{name} lists {len(unknown)} images that {self.datamodule.name} does not have in {folder}, for "
                f"example {unknown[0]!r}. Paths are relative to the dataset's root or to the category's folder, or "
                "absolute. Correct the list, or complete the dataset."
            )
            raise ValueError(msg)
        if not found:
            msg = f"{name} lists no image of {folder}. Give a list of this dataset and category."
            raise ValueError(msg)
        return subset_of, list(found)

    def _normal_count(self) -> int:
        return int((self.train_data.samples["label_index"] == LabelName.NORMAL).sum())

    def _join_training_set(self, rows: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
        """Append the chosen images to the training set as normal images, and return their table."""
        files = [self._image_and_mask(row, pool.loc[row.image_path]) for row in rows.itertuples()]
        noise = rows.rename(columns={"image_path": "source"})
        noise.insert(0, "image_path", [image_path for image_path, _ in files])
        noise.insert(1, "mask_path", [mask_path for _, mask_path in files])

        normal = self.train_data.samples
        normal = normal.assign(
            true_label_index=normal["label_index"],
            true_mask_path=normal["mask_path"].where(normal["label_index"] == LabelName.ABNORMAL, ""),
        )
        injected = pool.loc[rows["image_path"]].assign(
            image_path=noise["image_path"].to_numpy(),
            true_label_index=LabelName.ABNORMAL.value,
            true_mask_path=noise["mask_path"].to_numpy(),
            label_index=LabelName.NORMAL.value,
            mask_path="",
            split=Split.TRAIN.value,
        )
        if "label" in normal and len(normal):
            injected["label"] = normal["label"].iloc[0]
        samples = pd.concat([normal, injected[[c for c in normal if c in injected]]]) if len(injected) else normal
        samples.attrs = dict(self.train_data.samples.attrs)
        self.train_data = copy.copy(self.train_data)  # the wrapped datamodule keeps its own
        # The setter would sort by path, so that the name of the temporary folder would determine the training order
        self.train_data._samples = samples.reset_index(drop=True)
        return noise

    def _image_and_mask(self, row: Any, sample: pd.Series) -> tuple[str, str | list[str]]:
        """Return the files of an injected image and its mask; for a repeated image, they are written first."""
        mask_path = sample["mask_path"] if isinstance(sample["mask_path"], str | list) else ""
        motion = {"angle": row.angle, "shift_x": row.shift_x, "shift_y": row.shift_y}
        if not row.repeat and not any(motion.values()):
            return sample["image_path"], mask_path
        if self._repeats is None:
            self._repeats = TemporaryDirectory(prefix="anomalib_softpatch-")
        image_file = Path(self._repeats.name, "images", f"{row.image_path}-{row.repeat}.png")
        image_file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(sample["image_path"]) as image:
            pixels = np.asarray(image.convert("RGB"))  # as Anomalib reads it
        Image.fromarray(rotate_and_shift(pixels, **motion)).save(image_file)
        if not len(mask_path):
            return str(image_file), ""
        mask_file = Path(self._repeats.name, "masks", image_file.relative_to(Path(self._repeats.name, "images")))
        mask_file.parent.mkdir(parents=True, exist_ok=True)
        mask = 255 * _read_masks(mask_path).numpy()
        Image.fromarray(rotate_and_shift(mask, **motion, is_mask=True)).save(mask_file)
        return str(image_file), str(mask_file)


def _as_image_datamodule(datamodule: AnomalibDataModule | Mapping[str, Any] | str) -> AnomalibDataModule:
    """Instantiate a datamodule that is given as a configuration, and refuse all but image datamodules."""
    if isinstance(datamodule, Mapping | str):
        datamodule = instantiate(AnomalibDataModule, datamodule, argument="datamodule")
    if isinstance(datamodule, ADAM3D | Folder3D | MVTec3D | AnomalibVideoDataModule):
        raise TypeError(_not_images_message(datamodule))
    if not isinstance(datamodule, AnomalibDataModule) or isinstance(datamodule, NoisyDataModule):
        msg = f"datamodule={datamodule!r} must be an Anomalib image datamodule without noise, or its configuration."
        raise TypeError(msg)
    test_type = getattr(datamodule, "test_type", "public")
    if test_type != "public":  # MVTecAD2
        msg = f"test_type={test_type!r} has no labels, so no noise can be taken from it. Use 'public'."
        raise ValueError(msg)
    return datamodule


def _not_images_message(datamodule: AnomalibDataModule) -> str:
    name = type(datamodule).__name__
    return f"datamodule={name} has depth images or videos, but noise can only be injected into an image datamodule."


def _common_root(paths: pd.Series, root: str | Path | None) -> Path:
    """Return the dataset's root if all images lie in it, and their deepest common folder otherwise."""
    folders = {real_folder(path).parent for path in paths}
    if root is not None and all(folder.is_relative_to(os.path.realpath(root)) for folder in folders):
        return Path(os.path.realpath(root))
    return Path(os.path.commonpath(folders)) if folders else Path()


def _relative(path: str | list[str] | None, root: Path) -> str:
    """Return a path relative to the root, with ``/``; several are joined by semicolons, and ``None`` is empty."""
    if isinstance(path, list):
        return ";".join(_relative(each, root) for each in path)
    return Path(os.path.relpath(real_folder(path), root)).as_posix() if isinstance(path, str) and path else ""


def _without(dataset: AnomalibDataset, paths: set[str]) -> AnomalibDataset:
    """Return a dataset without some images, or the dataset itself if it has none of them."""
    kept = (~dataset.samples["image_path"].isin(paths)).to_numpy().nonzero()[0]
    return dataset if len(kept) == len(dataset) else dataset.subsample(list(kept))


def _read_masks(mask_path: str | list[str]) -> torch.Tensor:
    """Read a mask of shape ``(H, W)``; several masks are united."""
    paths = [mask_path] if isinstance(mask_path, str) else mask_path
    return torch.stack([cast("torch.Tensor", read_mask(path, as_tensor=True)) for path in paths]).amax(dim=0)
