# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A demonstration on images that need no download: ``anomalib-softpatch demo``."""

import sys
from pathlib import Path

from anomalib_softpatch.backbones import WeightsName, choose_backbone
from anomalib_softpatch.files import check_writable

__all__ = ["demo"]


def demo(
    output: Path = Path("demo"),
    backbone: str | None = None,
    layers: list[str] | None = None,
    weights: WeightsName | None = None,
    num_train: int = 40,
    num_hidden: int = 6,
    seed: int = 0,
) -> None:
    """Compare PatchCore with SoftPatch and SoftPatchPlus on a small set with defects among its training images.

    The demo makes the set, trains and tests the models, and shows a table and an image of the heat maps. It downloads
    nothing except the backbone's weights, if they are not on this machine and a hub can be reached.

    Args:
        output: Folder for the results; every run makes a new folder in it.
        backbone: Name of a timm model, or local-dir:<folder> for weights on disk. Default: as for clean-train.
        layers: Names of the layers to extract features from. Default: layer2 and layer3, or those that suit the
            weights.
        weights: Take the backbone from an installed pip package, without downloading from a hub: lite2 or lite0.
        num_train: Number of normal training images.
        num_hidden: Number of defective images hidden among the training images, at most 24.
        seed: Seed of the set and of the memory banks.
    """
    chosen = choose_backbone(backbone, layers, weights)
    check_writable(output)
    chosen.prepare()
    sys.stdout.write(f"Backbone: {chosen.name}. {chosen.remark}".rstrip() + "\nLoading torch and Anomalib.\n")
    sys.stdout.flush()
    from anomalib_softpatch.demo.run import run_demo  # noqa: PLC0415  # imports torch

    try:
        run_demo(output, chosen, num_train=num_train, num_hidden=num_hidden, seed=seed)
    except RuntimeError as error:  # weights are not available; the message explains what to do
        raise OSError(str(error)) from error
    except (KeyboardInterrupt, SystemExit):  # Lightning raises SystemExit in an interrupted process
        sys.stderr.write(f"\nStopped. The last folder in {output} is incomplete and can be deleted.\n")
        raise SystemExit(130) from None
