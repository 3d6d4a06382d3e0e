# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Tracing: while operations are recorded for an export, some of them and all shortcuts must be avoided."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812


def is_traced() -> bool:
    """Return whether operations are being recorded for an export."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()  # type: ignore[attr-defined]  # public in torch's documentation


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which ``torch.autocast`` does not change the type of products; in a graph, an empty one."""
    return nullcontext() if is_traced() else torch.autocast(device.type, enabled=False)


def rows_of(mask: torch.Tensor) -> torch.Tensor:
    """Return the indices of true elements, after an index 0, because some runtimes do not support empty tensors."""
    return F.pad(mask.nonzero().squeeze(1), (1, 0))
