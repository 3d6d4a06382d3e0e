# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What the Lightning modules of SoftPatch and SoftPatch+ share: all but their arguments."""

import logging
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from anomalib import LearningType, PrecisionType
from anomalib.data import Batch
from anomalib.models import Patchcore
from anomalib.models.components import MemoryBankMixin
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.data.depth import cut_values
from anomalib_softpatch.integration.compression import search_in_full_precision
from anomalib_softpatch.models.checkpoint import CheckpointMixin
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel
from anomalib_softpatch.report.fit_report import report_fit

logger = logging.getLogger(__name__)

# Protocol buffers, which ONNX files are, end at 2 GiB; some of it is for the graph.
LARGEST_ONNX_FILE = 1.9 * 2**30
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class DenoisingMixin(CheckpointMixin, MemoryBankMixin):
    """Wire a :class:`SoftPatchModel` to Anomalib's engine.

    A mixin and no common base class, because Anomalib lists and finds models among the direct subclasses of
    ``AnomalibModule`` only.
    """

    model: SoftPatchModel
    default_devices = 1  # see anomalib_softpatch.integration.engine

    def _create_model(
        self,
        memory_bank_builder: DenoisingMemoryBank,
        backbone: str | nn.Module,
        layers: Sequence[str],
        pre_trained: bool,
        num_neighbors: int,
        precision: str | PrecisionType,
        patch_embedding: Literal["average", "unfold"],
        memory_budget: float | None,
        noise_report: bool,
    ) -> None:
        """Create the torch model; to be called at the end of the constructor."""
        self.noise_report = noise_report
        self._warned_of_depth = False
        self._generator_states: dict[str, Any] | None = None
        precision = precision.value if isinstance(precision, PrecisionType) else str(precision).lower()
        if precision not in DTYPES:
            msg = f"Unknown precision '{precision}': choose from {', '.join(DTYPES)}."
            raise ValueError(msg)
        self.hparams["precision"] = precision  # checkpoints hold plain data, which loads without unpickling code
        self.model = SoftPatchModel(
            layers=layers,
            backbone=backbone,
            pre_trained=pre_trained,
            num_neighbors=num_neighbors,
            patch_embedding=patch_embedding,
            memory_bank_builder=memory_bank_builder,
            memory_budget=memory_budget,
        )
        # The backbone only: distances between half-precision features of a large bank lose their meaning.
        self.model.feature_extractor.to(DTYPES[precision])
        if isinstance(backbone, nn.Module):
            # Plain data only in checkpoints. Whoever loads one gives the module again: load_from_checkpoint(backbone=)
            self.hparams.pop("backbone", None)

    @classmethod
    def configure_pre_processor(
        cls,
        image_size: tuple[int, int] | None = None,
        center_crop_size: tuple[int, int] | None = None,
    ) -> PreProcessor:
        """Configure the pre-processor, which is PatchCore's.

        Args:
            image_size: Height and width to resize to. Default: 256 x 256.
            center_crop_size: Height and width to crop to; 224 x 224 in the papers. Default: no crop.

        Returns:
            Pre-processor that resizes, crops and normalizes with the statistics of ImageNet.
        """
        return Patchcore.configure_pre_processor(image_size, center_crop_size)

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Configure the default post-processor."""
        return PostProcessor()

    @staticmethod
    def configure_optimizers() -> None:
        """Nothing is optimized."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments: one pass over the training images."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """One class: no anomalous image is labelled in training."""
        return LearningType.ONE_CLASS

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Configure callbacks, and remember the random numbers that a fit is to draw.

        The fit draws them last, when the generators stand where the data loaders left them. So it draws them from where
        they stood before, the same for any loader and number of devices. This hook is the last one before Lightning
        sets up the processes of a distributed fit, which reseeds them.

        Returns:
            Those of Anomalib.
        """
        self._generator_states = _generator_states()
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Let a frozen backbone pass for one to train, without which DistributedDataParallel refuses it.

        Args:
            stage: Stage of the trainer.
        """
        super().setup(stage)
        self._frozen = [] if any(parameter.requires_grad for parameter in self.parameters()) else [*self.parameters()]
        for parameter in self._frozen[:1]:
            parameter.requires_grad_()

    def on_fit_start(self) -> None:
        """Refuse what could only fail after the features are extracted.

        Raises:
            ValueError: If the device cannot compute in the precision asked for.
        """
        super().on_fit_start()
        for parameter in self._frozen[:1]:
            parameter.requires_grad_(False)
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            # It has given all ranks the weights of rank 0. From here on there are no gradients to wait for, and no
            # buffers to send around before each batch.
            self.trainer.strategy.model = self
        self.model.feature_store.clear()
        dtype = self.model.feature_extractor.dtype
        try:
            probe = torch.zeros(1, 1, 3, 3, dtype=dtype, device=self.device)
            torch.nn.functional.conv2d(probe, probe)
        except RuntimeError as error:
            msg = (
                f"precision={str(dtype).removeprefix('torch.')} does not work on {self.device}: {error}. Use 'float32'."
            )
            raise ValueError(msg) from error
        self.model.memory_bank_builder.progress = (
            self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero
        )

    def on_train_start(self) -> None:
        """Refuse a single training image, which could only fail after its features are extracted.

        Raises:
            ValueError: If there is one training image only, and noise is to be found.
        """
        super().on_train_start()
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        if self.model.memory_bank_builder.needs_scores and isinstance(dataset, Sized) and len(dataset) == 1:
            msg = (
                "There is one training image only. Noise is found by comparing images with each other, which takes "
                "at least 2 training images: add some, or switch it off with a threshold of 0 and soft_weight=False."
            )
            raise ValueError(msg)

    def on_train_batch_start(self, batch: Batch, *args, **kwargs) -> None:  # noqa: ANN002, ANN003
        """Refuse or mention images that Anomalib has read as white, here and in the other loops.

        Args:
            batch: Images, after the pre-processor.
            *args: Not used.
            **kwargs: Not used.

        Raises:
            ValueError: If nothing is left of an image.
        """
        del args, kwargs
        for image, path in zip(batch.image, getattr(batch, "image_path", None) or [], strict=False):
            loss = cut_values(path)
            if loss and image.flatten(1).std(dim=1).max() < 1e-3:  # noqa: PLR2004  # resizing rounds
                msg = f"{loss}, so that it is all white. Convert the images to 8 bits per value first."
                raise ValueError(msg)
            if loss and not self._warned_of_depth:
                self._warned_of_depth = True  # in a set of such images there are many
                logger.warning("%s. Convert such images to 8 bits per value first.", loss)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def training_step(self, batch: Batch, *args, **kwargs) -> torch.Tensor:  # noqa: ANN002, ANN003
        """Extract and store the features of a batch.

        Args:
            batch: Training images.
            *args: Not used.
            **kwargs: Not used.

        Returns:
            A loss of zero, which Lightning asks for.

        Raises:
            ValueError: If an image gives NaN or infinite features.
        """
        del args, kwargs
        name = getattr(getattr(self.trainer, "datamodule", None), "image_key", str)
        keys = [name(path) for path in batch.image_path] if batch.image_path else None
        features = self.model(batch.image, keys)
        finite = features.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            paths = batch.image_path or [f"number {index}" for index in range(len(finite))]
            broken = ", ".join(str(path) for path, good in zip(paths, finite.tolist(), strict=True) if not good)
            msg = f"These images give NaN or infinite features (broken file, or half precision overflowed): {broken}"
            raise ValueError(msg)
        return torch.tensor(0.0, requires_grad=True, device=self.device)

    def fit(self) -> None:
        """Build the memory bank from the features of all training images."""
        logger.info("Building the memory bank.")
        with isolate_rng():
            if self._generator_states is not None:
                _restore(self._generator_states)
            self.model.fit()

    def on_train_epoch_end(self) -> None:
        """Build the memory bank if validation has not done so, and write the noise report."""
        super().on_train_epoch_end()
        if self.noise_report and self.trainer.is_global_zero:
            report_fit(self, self.model.denoising)

    def to_onnx(self, *args, **kwargs) -> Path:  # noqa: ANN002, ANN003
        """Export to ONNX, into one file where the format allows: PyTorch's default is a second file for the weights.

        Args:
            *args: See Anomalib's ``ExportMixin.to_onnx``.
            **kwargs: See there.

        Returns:
            The ONNX file.
        """
        size = sum(
            tensor.numel() * tensor.element_size()
            for tensor in self.state_dict().values()
            if isinstance(tensor, torch.Tensor)
        )
        kwargs.setdefault("external_data", size > LARGEST_ONNX_FILE)
        return super().to_onnx(*args, **kwargs)

    def _compress_ov_model(self, model: Any, *args, **kwargs) -> Any:  # noqa: ANN002, ANN003
        """Compress the backbone of an OpenVINO model, see Anomalib's ``ExportMixin``."""
        with search_in_full_precision(model, self.model.memory_bank):
            return super()._compress_ov_model(model, *args, **kwargs)

    def validation_step(self, batch: Batch, *args, **kwargs) -> STEP_OUTPUT:  # noqa: ANN002, ANN003
        """Score a batch.

        Args:
            batch: Images.
            *args: Not used.
            **kwargs: Not used.

        Returns:
            The batch with scores and maps.
        """
        del args, kwargs
        return batch.update(**self.model(batch.image)._asdict())


def _generator_states() -> dict[str, Any]:
    """Return the states of the generators that a fit draws from."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002  # scikit-learn's, which Anomalib's projection draws from
    }


def _restore(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
