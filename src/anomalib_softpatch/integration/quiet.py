# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Runs of Anomalib's engine inside a command of ours, without remarks that do not concern the user."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Loggers; Lightning's fabric has another name if it is installed alone
TALKATIVE = ("lightning.pytorch", "lightning.fabric", "lightning_fabric", "torch.onnx", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and remarks of other libraries out of the command's output."""
    levels = {name: logging.getLogger(name).level for name in TALKATIVE}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
