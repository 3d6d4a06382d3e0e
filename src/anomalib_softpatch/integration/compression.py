# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Compression of exported models to eight bits: of the backbone, not of the resize or the search in the memory bank.

With rows of the bank or distances in eight bits, scores lose their order. NNCF can leave operations out, but Anomalib
has no option for that. So our models are compressed here, with Anomalib's options in their usual meaning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.deploy import CompressionType
from anomalib.metrics import AUROC, F1Score
from torchmetrics import Metric

from anomalib_softpatch.components.search.bounds import sample_rows

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

ENOUGH_IMAGES = 300  # for calibration, as in Anomalib
LARGE_DROP = 0.1  # of a metric, as in Anomalib
LAYERS = ("Convolution", "GroupConvolution")  # every backbone begins with one of them
OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")  # of an exported model; the labels need a threshold


def compress(
    model: openvino.Model,
    memory_bank: torch.Tensor,
    compression_type: CompressionType | None,
    datamodule: AnomalibDataModule | None = None,
    metric: Metric | None = None,
    max_drop: float = 0.01,
    defects: torch.Tensor | None = None,
) -> openvino.Model:
    """Compress the backbone of an exported model to eight bits.

    Args:
        model: Exported model.
        memory_bank: Its memory bank, shape ``(m, channels)``.
        compression_type: ``INT8`` (weights only), ``INT8_PTQ`` (activations too) or ``INT8_ACQ`` (activations too, as
            long as the metric drops by no more than ``max_drop``).
        datamodule: For the last two types: its validation images calibrate, and its test images give the metric.
        metric: Metric for ``INT8_ACQ``; higher is better. Default: the F1 score of images, or their AUROC if the model
            has no threshold.
        max_drop: Largest drop of the metric, in [0, 1].
        defects: The model's patches of defects, if it was taught any.

    Raises:
        ImportError: If NNCF is not installed.
        ValueError: If the type is not one of these, or an argument that it needs is missing or out of range.
    """
    try:
        import nncf  # noqa: PLC0415  # an extra
    except ImportError as error:
        msg = "Compression needs NNCF: pip install 'anomalib-softpatch[openvino]'."
        raise ImportError(msg) from error

    scope = nncf.IgnoredScope(
        names=[*resize_operations(model), *search_operations(model, memory_bank, defects)], validate=False
    )
    if compression_type == CompressionType.INT8:
        return nncf.compress_weights(model, ignored_scope=scope)
    if compression_type not in {CompressionType.INT8_PTQ, CompressionType.INT8_ACQ}:
        msg = f"compression_type={compression_type!r} is not INT8, INT8_PTQ or INT8_ACQ."
        raise ValueError(msg)
    if datamodule is None:
        msg = f"{compression_type.name} compression needs images: give a datamodule."
        raise ValueError(msg)
    if not 0 <= max_drop <= 1:
        msg = f"max_drop={max_drop} must be between 0 and 1, for example 0.01 for 1 %."
        raise ValueError(msg)
    calibration = nncf.Dataset(_calibration_images(model, datamodule), lambda batch: batch.image)
    if compression_type == CompressionType.INT8_PTQ:
        return nncf.quantize(model, calibration, ignored_scope=scope)
    if max_drop > LARGE_DROP:
        logger.warning("max_drop=%g allows a large drop of the metric; 0.01 to 0.03 are usual.", max_drop)
    if metric is None:
        labeled = any("pred_label" in output.names for output in model.outputs)
        metric = F1Score(fields=["pred_label", "gt_label"]) if labeled else AUROC(fields=["pred_score", "gt_label"])
    return nncf.quantize_with_accuracy_control(
        model,
        calibration,
        nncf.Dataset(datamodule.test_dataloader()),
        partial(measure, metric=metric),
        max_drop=max_drop,
        ignored_scope=scope,
    )


def _calibration_images(model: openvino.Model, datamodule: AnomalibDataModule) -> Any:
    """Return the loader of the validation images, in batches of a size that the model accepts."""
    datamodule.setup("fit")
    if model.input(0).partial_shape[0].is_static:
        datamodule.eval_batch_size = model.input(0).shape[0]
    images = datamodule.val_dataloader()
    count = len(images.dataset)
    if count < ENOUGH_IMAGES:
        logger.warning("%d validation images calibrate the compression; %d are recommended.", count, ENOUGH_IMAGES)
    return images


def measure(model: openvino.CompiledModel, batches: Iterable[ImageBatch], metric: Metric) -> float:
    """Return the value of a metric, which is then reset, for an OpenVINO model and batches with labels and masks."""
    for batch in batches:
        assert batch.image is not None
        output: Any = model(batch.image)
        predicted: dict[str, Any] = {name: torch.from_numpy(output[name]) for name in OUTPUTS if name in output}
        for name in predicted.keys() & {"pred_score", "pred_label"}:
            predicted[name] = predicted[name].reshape(len(batch.image))
        masks = None if batch.gt_mask is None else batch.gt_mask[:, None]
        metric.update(ImageBatch(image=batch.image, gt_label=batch.gt_label, gt_mask=masks, **predicted))
    value = float(metric.compute())
    metric.reset()
    return value


def resize_operations(model: openvino.Model) -> list[str]:
    """Return the names of the operations on the images before the backbone's first layer, in order of execution."""
    found = {parameter.get_friendly_name() for parameter in model.get_parameters()}
    for operation in model.get_ordered_ops():
        inputs = (port.get_source_output().get_node().get_friendly_name() for port in operation.inputs())
        if operation.get_type_name() not in LAYERS and any(name in found for name in inputs):
            found.add(operation.get_friendly_name())
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_friendly_name() in found]


def search_operations(
    model: openvino.Model, memory_bank: torch.Tensor, defects: torch.Tensor | None = None
) -> list[str]:
    """Return the names of the operations on the memory bank, on their results, and on the queries.

    The memory bank has the shape ``(m, channels)``, and the patches of defects have ``(d, channels)``.

    Raises:
        ValueError: If the model does not search in this memory bank.
    """
    bank = memory_bank.detach().cpu()
    rows = bank.numpy() if defects is None or not len(defects) else torch.cat((bank, defects.to(bank))).numpy()
    center = sample_rows(bank).mean(dim=0).numpy()  # which a pruned search first subtracts from the queries
    found: set[str] = set()
    before = -1
    while len(found) > before:  # operations on the queries may come before the one that shows that they are queries
        before = len(found)
        for operation in model.get_ordered_ops():
            inputs = [port.get_source_output().get_node() for port in operation.inputs()]
            names = [node.get_friendly_name() for node in inputs]
            if found.isdisjoint(names) and not any(_is_of_bank(node, rows, center) for node in inputs):
                continue
            found.add(operation.get_friendly_name())
            if operation.get_type_name() == "MatMul":  # its queries were multiplied by -2
                found.update(node.get_friendly_name() for node in inputs if node.get_type_name() == "Multiply")
    if not found:
        msg = "The search in the memory bank was not found in the exported model, so it could not be left uncompressed."
        raise ValueError(msg)
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_friendly_name() in found]


def _is_of_bank(node: openvino.Node, rows: np.ndarray, center: np.ndarray) -> bool:
    """Tell whether a constant holds rows of the bank, or the bank's center or its negative, which OpenVINO adds."""
    if node.get_type_name() != "Constant" or list(node.shape)[-1:] != [len(center)]:
        return False
    values = node.data.reshape(-1, len(center))
    if node.data.ndim == rows.ndim and (rows == values[0]).all(axis=1).any():
        return True
    return len(values) == 1 and (np.allclose(values, center) or np.allclose(-values, center))
