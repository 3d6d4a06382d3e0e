# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How the features of a folder's images are extracted: options that ``rank_images``, report and clean-train share.

Torch is not imported here, because options are checked first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from anomalib_softpatch.image_size import described
from anomalib_softpatch.options import check

# Size of an image or a tile: one number for height and width, or both. It includes text so that Extraction refuses text
# in one line; the parser's message would have ten
Size: TypeAlias = int | Sequence[int] | str | None


@dataclass(frozen=True)
class Extraction:
    """Options of the backbone, of the images' size, and of the machine.

    Args:
        backbone: Name of a timm model, or local-dir:<folder> for weights on disk. Default: wide_resnet50_2, or if its
            weights are not available, the network of an installed pip package, see weights.
        layers: Names of the layers to extract features from, the finest grid first. Default: layer2 and layer3, or
            those that suit the weights.
        image_size: Height and width in pixels that images are resized to, for example 512 768, or one number for a
            square. Default: as many pixels as 256 x 256, in the aspect ratio of the images; with tile, their own size.
        tile: Cut the resized images into tiles of this height and width, for example 512, which go through the backbone
            one by one. This is for small defects in large images.
        stride: Pixels from one tile to the next, for example 384. Default: the size of a tile, without an overlap.
        batch_size: Number of images to send through the backbone at a time.
        num_workers: Additional processes that read images; 0 for none.
        device: Device for the computation, for example cpu or cuda; auto for a GPU if there is one.
        feature_cache: Folder that keeps the backbone's features, so that later and interrupted runs do not compute them
            again. It can become large, and you can delete it. Default: none; for clean-train, features/ in the output.

    Raises:
        ValueError: If an option is out of range, or the stride does not fit the tiles.
    """

    backbone: str | None = None
    layers: list[str] | None = None
    image_size: Size = None
    tile: Size = None
    stride: Size = None
    batch_size: int = 16
    num_workers: int = 0
    device: str = "auto"
    feature_cache: Path | None = None

    def __post_init__(self) -> None:
        check(batch_size=self.batch_size, num_workers=self.num_workers)
        _ = self.size, self.tiles

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; ``None`` for the default."""
        return _pair("image_size", self.image_size)

    @property
    def tiles(self) -> dict[str, tuple[int, int]] | None:
        """``tile_size`` and ``stride``, each height and width; ``None`` for no tiles."""
        tile, stride = _pair("tile", self.tile), _pair("stride", self.stride)
        if tile is None:
            if stride is not None:
                msg = f"stride={self.stride} needs tiles: give their size, too, for example tile=512."
                raise ValueError(msg)
            return None
        stride = stride or tile
        if stride[0] > tile[0] or stride[1] > tile[1]:
            msg = f"stride={described(stride)} leaves gaps between tiles of {described(tile)} pixels: make it smaller."
            raise ValueError(msg)
        return {"tile_size": tile, "stride": stride}


def _pair(name: str, value: Size) -> tuple[int, int] | None:
    """Return an option as height and width in pixels."""
    if value is None:
        return None
    if isinstance(value, str) or (not isinstance(value, int) and len(value) not in {1, 2}):
        msg = f"{name}={value} must be one number of pixels, or two: height and width, for example 512 768."
        raise ValueError(msg)
    sides = (value,) if isinstance(value, int) else tuple(value)
    check(**{name: sides})
    return sides[0], sides[-1]


DEFAULTS = Extraction()
