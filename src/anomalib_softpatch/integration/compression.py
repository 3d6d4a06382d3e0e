# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Compression of exported models to eight bits: of the backbone, and not of the search in the memory bank."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch

if TYPE_CHECKING:
    import openvino


@contextmanager
def search_in_full_precision(model: "openvino.Model", memory_bank: torch.Tensor) -> Iterator[None]:
    """Leave the search and all that follows it out of NNCF's compression while a block runs.

    With rows of the bank or distances in eight bits, scores lose their order. NNCF can leave operations out, but
    Anomalib has no option to say which, so that its calls get the argument here.

    Args:
        model: Exported model, not compressed yet.
        memory_bank: Its memory bank, shape ``(m, channels)``.

    Yields:
        Nothing.
    """
    import nncf  # noqa: PLC0415  # an extra

    scope = nncf.IgnoredScope(names=search_operations(model, memory_bank), validate=False)
    functions = ("compress_weights", "quantize", "quantize_with_accuracy_control")
    with patch.multiple(nncf, **{name: partial(getattr(nncf, name), ignored_scope=scope) for name in functions}):
        yield


def search_operations(model: "openvino.Model", memory_bank: torch.Tensor) -> list[str]:
    """Return the names of the operations on the memory bank, on what comes of them, and on the queries.

    Args:
        model: Exported model.
        memory_bank: Its memory bank, shape ``(m, channels)``.

    Returns:
        Names, in an order of execution.
    """
    rows = memory_bank.detach().cpu().numpy()
    found: set[str] = set()
    for operation in model.get_ordered_ops():
        inputs = [port.get_source_output().get_node() for port in operation.inputs()]
        if not any(node.get_friendly_name() in found or _is_bank(node, rows) for node in inputs):
            continue
        found.add(operation.get_friendly_name())
        if operation.get_type_name() == "MatMul":  # its queries were multiplied by -2
            found.update(node.get_friendly_name() for node in inputs if node.get_type_name() == "Multiply")
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_friendly_name() in found]


def _is_bank(node: "openvino.Node", rows: np.ndarray) -> bool:
    """Whether a node is a constant that holds rows of the bank."""
    if node.get_type_name() != "Constant" or len(node.shape) != rows.ndim or node.shape[1] != rows.shape[1]:
        return False
    return bool((rows == node.data[0]).all(axis=1).any())
