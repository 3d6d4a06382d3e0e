# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What happens around a fit, outside of the model: checks before the features are extracted, and the report."""

import logging
from collections.abc import Sequence, Sized
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn import functional

from anomalib_softpatch.components import FeatureCache
from anomalib_softpatch.components.tiles import check_tiles
from anomalib_softpatch.data.protocols import ReadsDeepImages
from anomalib_softpatch.data.unreadable import leave_out, listed, misread_images, unreadable_images
from anomalib_softpatch.images.appearance import GRID, appearance
from anomalib_softpatch.images.reading import EIGHT_BITS
from anomalib_softpatch.integration.pre_processing import reason_against_pre_processor
from anomalib_softpatch.text import counted

if TYPE_CHECKING:
    from anomalib_softpatch.models.denoising_mixin import DenoisingMixin

logger = logging.getLogger(__name__)

TOO_FEW = (
    "There are too few images to hold some back for tests: {count} for training, 0 for tests ({error}). Add images, or "
    "do not hold any back: --data.test_split_mode none --data.val_split_mode same_as_test."
)


class FitChecks(Callback):
    """Refuse what would otherwise fail only after all features are extracted, which takes minutes.

    It also makes each fit build a memory bank: Anomalib builds one only for a model that has none.
    """

    def setup(self, trainer: Trainer, pl_module: "DenoisingMixin", stage: str) -> None:
        """Check the pre-processor and the size of the images, and look for unreadable images in all sets."""
        if stage != "fit":
            return
        reason = reason_against_pre_processor(pl_module.pre_processor)
        if reason:
            raise ValueError(reason)
        size, model = pl_module.input_size, pl_module.model
        if model.tiler is not None:
            check_tiles(model.tiler, model.feature_extractor, size)
        elif size is not None:
            model.feature_extractor.check_size(*size)
        datamodule = getattr(trainer, "datamodule", None)
        # Anomalib reads 8 bits only
        pl_module.largest_value = datamodule.largest_value if isinstance(datamodule, ReadsDeepImages) else EIGHT_BITS
        if not isinstance(datamodule, AnomalibDataModule):
            return
        reasons = unreadable_images(datamodule)
        pl_module.skipped = list(reasons.items())
        if not reasons:
            return
        if not pl_module.skip_unreadable:
            msg = (
                f"{len(reasons)} images cannot be read. Repair or remove them, or leave them out with "
                f"--model.skip_unreadable true:\n{listed(reasons)}"
            )
            raise ValueError(msg)
        logger.warning("%d images cannot be read and are left out:\n%s", len(reasons), listed(reasons))
        leave_out(datamodule, list(reasons))

    def on_fit_start(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Try the precision on the device, forget features of an interrupted fit, and show progress if others do."""
        pl_module.model.feature_store.clear()
        dtype = pl_module.model.feature_extractor.dtype
        try:
            probe = torch.zeros(1, 1, 3, 3, dtype=dtype, device=pl_module.device)
            functional.conv2d(probe, probe)
        except RuntimeError as error:
            name = str(dtype).removeprefix("torch.")
            msg = f"precision={name} does not work on {pl_module.device}: {error}. Use 'float32'."
            raise ValueError(msg) from error
        shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
        pl_module.model.memory_bank_builder.progress = shown

    def on_train_start(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Refuse a single training image if noise must be found, and request a new memory bank."""
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        if pl_module.model.memory_bank_builder.needs_scores and isinstance(dataset, Sized) and len(dataset) == 1:
            msg = (
                "There is only one training image. Noise is found by comparing images with each other, which takes "
                "at least 2 training images: add some, or switch it off with a threshold of 0 and soft_weight=False."
            )
            raise ValueError(msg)
        pl_module.mark_fitted(False)

    def on_fit_end(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Log how far the fit can be trusted."""
        check = pl_module.self_check()
        if check is not None:
            logger.info("%s", "\n".join(check.lines))

    def on_exception(self, trainer: Trainer, pl_module: "DenoisingMixin", exception: BaseException) -> None:
        """Keep an earlier memory bank and drop the features; explain the error if there are too few images to split."""
        pl_module.model.feature_store.clear()
        pl_module.mark_fitted(bool(pl_module.model.bank_ranges))
        datamodule = getattr(trainer, "datamodule", None)
        datamodule = getattr(datamodule, "datamodule", datamodule)  # that NoisyDataModule wraps
        test_data = getattr(datamodule, "test_data", None)
        if isinstance(exception, ValueError) and test_data is not None and len(test_data) == 0:
            # Anomalib's own message, about splitting nothing, does not name the cause
            exception.args = (TOO_FEW.format(count=len(getattr(datamodule, "train_data", ())), error=exception),)


class ImageAppearance(Callback):
    """Note how training images look as a whole while they pass, so that predictions can tell whether new ones differ.

    It comes before the pre-processor, which is also a callback and whose normalized images have lost their brightness.
    """

    def on_train_start(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Forget images of an earlier fit."""
        pl_module.appearances = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: "DenoisingMixin", batch: ImageBatch, batch_idx: int
    ) -> None:
        """Look at a batch of images in [0, 1]."""
        if batch.image is None or pl_module.appearances is None:
            return
        colors = functional.adaptive_avg_pool2d(batch.image.as_subclass(torch.Tensor).float(), GRID).cpu().numpy()
        for path, each in zip(batch.image_path or [], colors, strict=False):
            with suppress(OSError):  # paths are not always files
                pl_module.appearances[str(path)] = appearance(path, each)


class FeatureCaching(Callback):
    """Have a fit look up its features in a folder on disk, and store those that it has to compute."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Open the cache."""
        pl_module.model.feature_cache = FeatureCache(pl_module.model.feature_extractor, self.folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "DenoisingMixin", outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Log after the first batch how much disk space the cache will take."""
        cache, dataset = pl_module.model.feature_cache, getattr(trainer.train_dataloader, "dataset", None)
        if batch_idx == 0 and cache is not None and isinstance(dataset, Sized) and batch.image is not None:
            logger.info(cache.check_space(len(batch.image), len(dataset)))

    def on_fit_end(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Close the cache: features of tested and predicted images are not kept."""
        cache, pl_module.model.feature_cache = pl_module.model.feature_cache, None
        if cache is not None:
            logger.info("Features: %d found in %s, %d computed.", cache.found, cache.folder, cache.computed)

    def on_exception(self, trainer: Trainer, pl_module: "DenoisingMixin", exception: BaseException) -> None:
        """Close the cache; what is in it stays."""
        self.on_fit_end(trainer, pl_module)


class AnomalibReading(Callback):
    """Refuse images that Anomalib would read in another way than the model's training images were read.

    Training does not need it: :class:`FitChecks` looks at the images of all sets.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Check the images to predict."""
        self._check(trainer.predict_dataloaders, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Check the test images."""
        self._check(trainer.test_dataloaders, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Check the validation images."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._check(trainer.val_dataloaders, pl_module)

    @staticmethod
    def _check(loaders: Any, pl_module: "DenoisingMixin") -> None:
        several = loaders if isinstance(loaders, Sequence) else [loaders]
        reasons = misread_images((getattr(loader, "dataset", None) for loader in several), pl_module.largest_value)
        if reasons:
            msg = (
                f"Anomalib would misread {counted(len(reasons), 'image')}. Convert or remove them, or use "
                f"anomalib-softpatch predict:\n{listed(reasons)}"
            )
            raise ValueError(msg)


class NoiseReport(Callback):
    """Write ``noise_report/`` into the results folder once the memory bank is built."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: "DenoisingMixin") -> None:
        """Write the report, and log how well known noise was found."""
        pl_module.on_train_epoch_end()  # builds the memory bank; Lightning calls the model's hooks later
        if trainer.is_global_zero:
            try:
                from anomalib_softpatch.models.fit_report import report_fit  # noqa: PLC0415  # drawing libraries
            except ImportError as error:  # a trained model is worth more than its report
                logger.warning("No noise report: %s", error)
            else:
                report_fit(pl_module)
