# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Golden images: the scores that an exported file must give a few images, which any machine can check.

The images are made from a seed, so that the file holds only their sizes and scores. They check the arithmetic, from
resizing to the threshold, and not whether a model is any good.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

SIZES = ((256, 256), (480, 640), (1000, 700))  # height and width, for files that take any size
SQUARE = 16  # pixels on a side of one color


@dataclass(frozen=True)
class GoldenImage:
    """An image, with its score and verdict by the model that a file was exported from."""

    seed: int  # of the random number generator that makes the image
    height: int  # pixels
    width: int
    score: float  # normalized where the model normalizes
    anomalous: bool | None  # None where the model gives no verdict

    def pixels(self) -> np.ndarray:
        """Return the image, shape ``(1, 3, height, width)``, in [0, 1]."""
        return make_image(self.seed, self.height, self.width)


def make_image(seed: int, height: int, width: int) -> np.ndarray:
    """Make an image of colored squares with fine noise, which resizing without antialiasing would keep.

    Returns:
        Shape ``(1, 3, height, width)``, float32 in [0, 1].
    """
    generator = np.random.default_rng(seed)
    colors = generator.integers(0, 192, (3, -(-height // SQUARE), -(-width // SQUARE)))
    squares = colors.repeat(SQUARE, axis=1).repeat(SQUARE, axis=2)[:, :height, :width]
    noise = generator.integers(0, 64, (3, height, width))
    return ((squares + noise) / 255).astype(np.float32)[None]


def golden_images(model: "nn.Module", device: "torch.device", size: tuple[int, int] | None) -> list[GoldenImage]:
    """Score one image of the size that an exported model takes, or several sizes if it takes any (``None``)."""
    import torch  # noqa: PLC0415  # exported files are run without it

    found = []
    for seed, (height, width) in enumerate([size] if size else SIZES):
        try:
            with torch.no_grad():
                output = model(torch.from_numpy(make_image(seed, height, width)).to(device))
        except ValueError:  # without a resize, some backbones do not accept every size
            continue
        label = getattr(output, "pred_label", None)
        anomalous = None if label is None else bool(label.any())
        found.append(GoldenImage(seed, height, width, float(output.pred_score), anomalous))
    return found
