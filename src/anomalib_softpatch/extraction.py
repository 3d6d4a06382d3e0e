# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How the features of a folder's images are extracted: options that ``rank_images``, report and clean-train share.

Torch is not imported here: options are looked at before it is.
"""

from dataclasses import dataclass
from pathlib import Path

from anomalib_softpatch.image_size import Size, checked_size, checked_tiles
from anomalib_softpatch.options import check


@dataclass(frozen=True)
class Extraction:
    """Options of the backbone, of the images' size, and of the machine.

    Args:
        backbone: Name of a timm model, or local-dir:<folder> for weights on disk. Default: wide_resnet50_2, or where
            its weights cannot be had those of an installed pip package, see weights.
        layers: Names of the layers to extract features from, the finest grid first. Default: layer2 and layer3, or
            those that suit the weights.
        image_size: Height and width in pixels that images are resized to, for example 512 768, or one number for a
            square. Default: as many pixels as 256 x 256 has, in the aspect ratio of the images; with tile, their size.
        tile: Cut the resized images into tiles of this height and width, for example 512, which go through the backbone
            one by one: for small defects in large images.
        stride: Pixels from one tile to the next, for example 384. Default: those of a tile, without an overlap.
        batch_size: Number of images to send through the backbone at a time.
        num_workers: Processes that read images, 0 for none beside this one.
        device: Device for the computation, for example cpu or cuda; auto for a GPU if there is one.
        feature_cache: Folder in which the backbone's features are kept, so that another run, or one that was stopped,
            does not compute them again. It may become large, and can be deleted. Default: none are kept; by clean-train
            in features/ of the output.

    Raises:
        ValueError: If an option is out of range, or size and tiles do not fit each other.
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
        checked_size("image_size", self.image_size)
        checked_tiles(self.tile, self.stride)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; ``None`` for the default."""
        return checked_size("image_size", self.image_size)

    @property
    def tiles(self) -> dict[str, tuple[int, int]] | None:
        """``tile_size`` and ``stride``, each height and width; ``None`` for no tiles."""
        return checked_tiles(self.tile, self.stride)


DEFAULTS = Extraction()
