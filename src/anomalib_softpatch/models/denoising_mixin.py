# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The shared part of the Lightning modules of SoftPatch and SoftPatch+: all but their options for noise."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias, cast

import torch
from anomalib import LearningType, PrecisionType, TaskType
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.deploy import CompressionType
from anomalib.metrics import Evaluator
from anomalib.models import Patchcore
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer, Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torchmetrics import Metric

from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.components.memory_bank import seeded
from anomalib_softpatch.components.search.approximate import SearchName
from anomalib_softpatch.components.self_check import SelfCheck, self_check
from anomalib_softpatch.data.protocols import NamesImages
from anomalib_softpatch.images.appearance import Appearance
from anomalib_softpatch.images.hashing import hash_files
from anomalib_softpatch.images.reading import EIGHT_BITS, image_size
from anomalib_softpatch.integration.distributed import DistributedFit
from anomalib_softpatch.integration.engine import respect_default_devices
from anomalib_softpatch.integration.pre_processing import check_exportable, infer_as_trained
from anomalib_softpatch.models.callbacks import AnomalibReading, FeatureCaching, FitChecks, ImageAppearance, NoiseReport
from anomalib_softpatch.models.checkpoint import CheckpointMixin
from anomalib_softpatch.models.distributed import fit_on_first_rank
from anomalib_softpatch.models.evaluator import LabelAwareEvaluator
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.models.soft_patch.torch_model import SoftPatchModel
from anomalib_softpatch.models.teaching import training_facts
from anomalib_softpatch.models.visualizer import VerdictVisualizer
from anomalib_softpatch.options import check_choice
from anomalib_softpatch.predictions.callback import PredictionTable
from anomalib_softpatch.predictions.golden import golden_images
from anomalib_softpatch.predictions.metadata import Metadata, write_metadata
from anomalib_softpatch.predictions.verification import check_file

logger = logging.getLogger(__name__)

# ONNX files are protocol buffers, which hold up to 2 GiB; some of it is for the graph
LARGEST_ONNX_FILE = 1.9 * 2**30
# PyTorch's exporter writes this version. Anomalib requests 14, and the conversion fails with a traceback on the console
ONNX_VERSION = 18
# A torch module. With that type, the command line's help would list every module of every library, thousands of lines
Network: TypeAlias = Callable[[torch.Tensor], Any]
SIZES_READ = 16  # images whose size is read, without decoding them
PROBES = ((64, 64), (64, 96))  # height and width of images, to see whether a pre-processor makes them the same size
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class DenoisingMixin(CheckpointMixin, MemoryBankMixin):
    """Wire a :class:`SoftPatchModel` to Anomalib's engine.

    It is a mixin instead of a base class, because Anomalib finds models only among the direct subclasses of
    ``AnomalibModule``. The models declare the options with their defaults and meaning, see
    :class:`~anomalib_softpatch.models.SoftPatch`. Discriminators and thresholds are those of the memory bank.
    """

    model: SoftPatchModel
    default_devices = 1  # see anomalib_softpatch.integration.engine
    # During a fit: how training images look, by path, see ImageAppearance
    appearances: dict[str, Appearance] | None = None

    def __init__(
        self,
        discriminators: Sequence[str],
        thresholds: Sequence[float],
        *,
        soft_weight: bool | Literal["rank", "lof"],
        min_images: float | Literal["auto"],
        neighborhood: int | Literal["image"],
        score_smoothing: float,
        lof_k: int,
        max_references: int,
        discriminator_options: dict[str, Any] | None,
        coreset_sampling_ratio: float,
        backbone: str | Network,
        layers: Sequence[str],
        pre_trained: bool,
        patch_embedding: Literal["average", "unfold"],
        precision: str | PrecisionType,
        num_neighbors: int,
        search: SearchName,
        memory_budget: float | None,
        feature_cache: str | None,
        noise_report: bool,
        skip_unreadable: bool,
        seed: int,
        pre_processor: PreProcessor | bool,
        post_processor: PostProcessor | bool,
        evaluator: Evaluator | bool,
        visualizer: Visualizer | bool,
    ) -> None:
        memory_bank_builder = DenoisingMemoryBank(
            discriminators, thresholds, coreset_sampling_ratio, soft_weight, min_images, lof_k=lof_k,
            discriminator_options=discriminator_options, neighborhood=neighborhood, max_references=max_references,
            seed=seed,
        )  # fmt: skip
        precision = precision.value if isinstance(precision, PrecisionType) else str(precision).lower()
        check_choice("precision", precision, DTYPES)
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        respect_default_devices()
        infer_as_trained(self.pre_processor)
        self.noise_report = noise_report
        self.feature_cache = feature_cache
        self.skip_unreadable = skip_unreadable
        self.skipped: list[tuple[str, str]] = []  # images that were left out of the fit, and why
        self._files: dict[str, str] = {}  # of training images by their keys, while features are extracted
        self._checks_exports = True
        self.largest_value = EIGHT_BITS  # of the training images, see FitChecks
        with seeded(seed):
            self.model = SoftPatchModel(
                layers=layers,
                backbone=cast("str | nn.Module", backbone),
                pre_trained=pre_trained,
                num_neighbors=num_neighbors,
                score_smoothing=score_smoothing,
                search=search,
                patch_embedding=patch_embedding,
                memory_bank_builder=memory_bank_builder,
                memory_budget=memory_budget,
            )
        # Only the backbone: distances between half-precision features of a large bank lose their meaning
        self.model.feature_extractor.to(DTYPES[precision])
        self._clean_hyper_parameters(precision)

    def _clean_hyper_parameters(self, precision: str) -> None:
        """Keep only the model's own options, as plain data: checkpoints load without code and restore them."""
        self.hparams.pop("thresholds", None)
        self.hparams.pop("feature_cache", None)  # a folder on this machine, which is not part of the model
        self.hparams["precision"] = precision
        if "discriminator" in self.hparams:
            self.hparams.pop("discriminators", None)
        if not self.hparams.get("discriminator_options"):  # version 0.3 does not know this option
            self.hparams.pop("discriminator_options", None)
        if not isinstance(self.hparams.get("backbone", ""), str):
            # Users who load a checkpoint give the module again: load_from_checkpoint(backbone=)
            self.hparams.pop("backbone")

    @classmethod
    def configure_pre_processor(
        cls, image_size: tuple[int, int] | None = None, center_crop_size: tuple[int, int] | None = None
    ) -> PreProcessor:
        """Configure PatchCore's pre-processor: resize, crop, and normalization with the statistics of ImageNet.

        Args:
            image_size: Height and width to resize to. Default: 256 x 256.
            center_crop_size: Height and width to crop to; 224 x 224 in the papers. Default: no crop.
        """
        return Patchcore.configure_pre_processor(image_size, center_crop_size)

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Configure the default post-processor, which decides without labels if there are none."""
        return LabelFreePostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Configure the default evaluator: Anomalib's metrics, as far as the labels allow them."""
        metrics: Any = AnomalibModule.configure_evaluator().test_metrics  # torch types them as modules only
        return LabelAwareEvaluator(test_metrics=list(metrics))

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """Configure the default visualizer: Anomalib's strips, with verdict, score and threshold."""
        return VerdictVisualizer()

    @staticmethod
    def configure_optimizers() -> None:
        """Nothing is optimized."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments: one pass over the training images."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """One class: training uses no labels of anomalous images."""
        return LearningType.ONE_CLASS

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width of images after the pre-processor; ``None`` if they depend on the images."""
        transform = getattr(self.pre_processor, "transform", None)
        if transform is None:
            return None
        # Two shapes are tried: Anomalib tries one, and takes the result of padding or a one-sided resize for the size
        first, second = (transform(torch.zeros(1, 3, *size)).shape[-2:] for size in PROBES)
        return (int(first[0]), int(first[1])) if first == second else None

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Add the callbacks around a fit to Anomalib's."""
        anomalibs = cast("list[Callback]", super().configure_callbacks())  # a list, where one callback is allowed too
        callbacks = [ImageAppearance(), *anomalibs, DistributedFit(), FitChecks(), AnomalibReading(), PredictionTable()]
        callbacks += [FeatureCaching(self.feature_cache)] if self.feature_cache is not None else []
        return [*callbacks, NoiseReport()] if self.noise_report else callbacks

    def training_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Store the features of a batch and return a loss of zero, which Lightning requires."""
        datamodule = getattr(self.trainer, "datamodule", None)
        name = datamodule.image_key if isinstance(datamodule, NamesImages) else str
        keys = [name(path) for path in batch.image_path] if batch.image_path else None
        self._files.update(zip(keys or [], batch.image_path or [], strict=True))
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
        fit_on_first_rank(self.model, lambda: self.model.fit(self.input_size))
        record = self.model.record
        if record is not None:
            # The record stays on the CPU, where it takes no memory from the next fit
            appearances = tuple(each for _, each in sorted((self.appearances or {}).items()))
            # Hashes of the files, by which teaching identifies the images; empty for images without a file
            files = [Path(self._files.get(key, key)) for key in record.keys]
            names = tuple(hash_files(file) if file.is_file() else "" for file in files)
            self.model.record = replace(record.to(torch.device("cpu")), names=names, appearances=appearances)
        self._files, self.appearances = {}, None

    def mark_fitted(self, fitted: bool) -> None:
        """Set Anomalib's flag: if it is not set, the end of the epoch or a validation builds a memory bank."""
        self._is_fitted = torch.tensor([fitted], device=self.device)

    def self_check(self) -> SelfCheck | None:
        """Judge from its own facts how far the last fit can be trusted.

        ``None`` if there was no fit (as after loading), if thresholds are off, and in processes other than the first.
        """
        facts, processor = self.model.fit_facts, self.post_processor
        if facts is None or not isinstance(processor, PostProcessor):
            return None
        asked = processor.asked_false_alarms if isinstance(processor, LabelFreePostProcessor) else None
        threshold = float(processor.image_threshold)
        if math.isnan(threshold) and facts.scores:  # thresholds are switched off
            return None
        return self_check(facts, threshold, asked, self._image_scale())

    def _image_scale(self) -> float | None:
        """Return how many times larger than the model's input the typical training image is, from a few of them."""
        keys = () if self.model.denoising is None else self.model.denoising.keys
        if self.input_size is None or not keys:
            return None
        height, width = self.input_size
        try:
            sizes = [image_size(key) for key in keys[:: max(1, len(keys) // SIZES_READ)]]
        except OSError:  # keys are not always paths
            return None
        return median(max(size[0] / width, size[1] / height) for size in sizes)

    def validation_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Add scores and maps to a batch."""
        return batch.update(**self.model(batch.image)._asdict())

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:  # type: ignore[override]  # Anomalib's is not Lightning's
        """Export with a pruned search, to a single ONNX file if the format allows it, see Anomalib.

        Raises:
            ValueError: If the file could not resize images as the model does, or cut them into tiles.
        """
        check_exportable(self.pre_processor)
        if self.model.tiler is not None and self.input_size is None:  # a graph has a fixed number of tiles
            msg = "A model with tiles is exported for one image size: give it a pre-processor with a Resize."
            raise ValueError(msg)
        size = sum(tensor.nbytes for tensor in self.state_dict().values() if isinstance(tensor, torch.Tensor))
        kwargs.setdefault("external_data", size > LARGEST_ONNX_FILE)
        kwargs.setdefault("opset_version", ONNX_VERSION)
        if self.model.search == "faiss":
            logger.info("The exported file has the exact search: search='faiss' is for PyTorch on a CPU.")
        with self.model.pruned_graphs():
            path = super().to_onnx(*args, **kwargs)
        input_size = kwargs.get("input_size", args[2] if len(args) > 2 else None)  # noqa: PLR2004  # Anomalib's third
        golden = golden_images(self.eval(), self.device, input_size)
        transform = getattr(self.pre_processor, "transform", None)
        write_metadata(path, Metadata(transform, golden, self.largest_value, training_facts(self)))
        if self._checks_exports:
            check_file(path)
        return path

    def to_openvino(self, *args: Any, **kwargs: Any) -> Path:
        """Export to OpenVINO, see Anomalib, and compare the file with the model."""
        self._checks_exports = False  # the intermediate ONNX file is not compared
        try:
            path = super().to_openvino(*args, **kwargs)
        finally:
            self._checks_exports = True
        check_file(path)
        return path

    def _compress_ov_model(
        self,
        model: Any,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        metric: Metric | None = None,
        task: TaskType | None = None,
        max_drop: float = 0.01,
    ) -> Any:
        """Compress an OpenVINO model except for its search, see Anomalib's ``ExportMixin.to_openvino``."""
        from anomalib_softpatch.integration.compression import compress  # noqa: PLC0415  # optional, so imported late

        del task  # the datamodule has it
        bank, defects = self.model.memory_bank, self.model.defects
        return compress(model, bank, compression_type, datamodule, metric, max_drop, defects)
