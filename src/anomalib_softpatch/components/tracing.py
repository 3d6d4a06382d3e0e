# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Tracing: what runs is being recorded for an export, where some operations and all shortcuts are out of place."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812


def is_traced() -> bool:
    """Return whether the operations that run now are recorded."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()  # type: ignore[attr-defined]  # public in torch's documentation


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products keep their type, whatever ``torch.autocast`` says; in a graph, none."""
    return nullcontext() if is_traced() else torch.autocast(device.type, enabled=False)


def rows_of(mask: torch.Tensor) -> torch.Tensor:
    """Return which elements are true, and the first one, since runtimes do not all bear tensors without elements."""
    return F.pad(mask.nonzero().squeeze(1), (1, 0))
