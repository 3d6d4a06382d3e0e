# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A demonstration on images that need no download: ``anomalib-softpatch demo``."""

import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

__all__ = ["main"]


def main(
    *,
    output: Path = Path("demo"),
    backbone: str | None = None,
    layers: Sequence[str] | None = None,
    num_train: int = 40,
    num_hidden: int = 6,
    seed: int = 0,
) -> None:
    """Compare PatchCore with SoftPatch on a small set that has defects among its training images.

    Makes the set, trains and tests both through the ordinary ``anomalib`` command, and shows a table and an image of
    the heat maps. Nothing is downloaded but the backbone's weights, where a hub can be reached.

    Args:
        output: Folder for the results; every run makes a new folder in it.
        backbone: Name of a timm model, or local-dir:<folder> for weights in a local folder. By default resnet18 if its
            weights are cached or a hub can be reached, else efficientnet-lite0 or efficientnet-lite2 if the pip package
            with its weights is installed (see anomalib-softpatch weights), else resnet18 with untrained weights.
        layers: Layers of the backbone whose features are used, by default layer2 and layer3 of a backbone that is
            given by name.
        num_train: Number of normal training images.
        num_hidden: Number of defective images hidden among the training images, at most 24.
        seed: Seed of the set and of an untrained backbone. The choice of the memory bank's first patch stays random.
    """
    # Being told to end is handled like Ctrl-C: no training command may outlive the demo.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False, markup=False)
    console.print("Loading torch and Anomalib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Anomalib imports what Anomalib and timm have deprecated
        from anomalib_softpatch.demo.run import run_demo  # noqa: PLC0415  # slow, so after the first line of output
    try:
        run_demo(output, backbone=backbone, layers=layers, num_train=num_train, num_hidden=num_hidden, seed=seed)
    except (OSError, RuntimeError, ValueError) as error:
        console.print(f"Error: {error}", style="red", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Stopped. The results of earlier runs are as they were.")
        sys.exit(130)
