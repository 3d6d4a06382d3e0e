# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Features by tiles, against Anomalib's tiler and against an extractor that needs no tiles."""

import pytest
import torch
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.components.tiles import check_tiles, extract_by_tiles, make_tiler, tiles_of

STEP = 8


def means(images: torch.Tensor) -> torch.Tensor:
    """Mean color of squares of 8 x 8 pixels, which does not depend on where an image is cut between them."""
    return F.avg_pool2d(images, STEP, ceil_mode=True).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (72, 104), (200, 64), (70, 99)])
@pytest.mark.parametrize(("tile", "stride"), [(64, 64), (64, 48), (64, 16), ((32, 64), (24, 32))])
def test_one_grid_for_the_whole_image(size, tile, stride):
    """If tiles do not fit the image, its grid has no patches beyond the image, and no patch moves."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    padded = F.pad(images, (0, -size[1] % STEP, 0, -size[0] % STEP))
    features = extract_by_tiles(means, images, Tiler(tile, stride))
    torch.testing.assert_close(features, F.avg_pool2d(padded, STEP).permute(0, 2, 3, 1))


@pytest.mark.parametrize("stride", [64, 32])
def test_tiles_that_fit_are_joined_as_anomalib_does(stride):
    """With a network, whose features depend on where the image is cut, overlaps are averaged."""
    extractor = PatchFeatureExtractor("test_resnet", ["layer1", "layer2"], pre_trained=False).eval()
    images = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    tiler = Tiler(64, stride)
    with torch.no_grad():
        parts = extractor(tiler.tile(images)).permute(0, 3, 1, 2)
        features = extract_by_tiles(extractor, images, tiler)
    torch.testing.assert_close(features, tiler.untile(parts).permute(0, 2, 3, 1))


def test_images_go_through_the_backbone_one_after_another():
    """So that memory does not grow with the batch."""
    counts = []

    def extract(tiles: torch.Tensor) -> torch.Tensor:
        counts.append(len(tiles))
        return means(tiles)

    extract_by_tiles(extract, torch.rand(5, 3, 128, 96), Tiler(64, 32))
    assert counts == [3 * 2] * 5


def test_tilers_come_back_from_plain_data():
    tiler = make_tiler(tiles_of(Tiler([64, 96], [32, 48])))
    assert (tiler.tile_size_h, tiler.tile_size_w, tiler.stride_h, tiler.stride_w) == (64, 96, 32, 48)
    assert make_tiler(tiles_of(None)) is None


@pytest.mark.parametrize(
    ("tiler", "message"),
    [
        (Tiler(96, 96), "Tiles of 96 x 96 pixels do not fit into images of 64 x 128"),
        (Tiler(62, 62), "Tiles of 62 pixels every 62 pixels do not line up .* multiples of 4"),
        (Tiler(64, 30), "Tiles of 64 pixels every 30 pixels do not line up .* multiples of 4"),
        (Tiler(64, 64, remove_border_count=1), "only with remove_border_count=0 and mode='padding'"),
        (Tiler(64, 64, mode=ImageUpscaleMode.INTERPOLATION), "only with remove_border_count=0 and mode='padding'"),
    ],
)
def test_tiles_that_do_not_form_a_grid_are_refused(tiler, message):
    extractor = PatchFeatureExtractor("test_resnet", ["layer1"], pre_trained=False).eval()
    with pytest.raises(ValueError, match=message):
        check_tiles(tiler, extractor, (64, 128))
