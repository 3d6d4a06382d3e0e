# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The demo's figure: positions of the drawings, and their scale."""

import numpy as np
from PIL import Image

from anomalib_softpatch.demo.run import draw_figure
from conftest import save


def test_maps_are_on_one_scale_and_defects_outlined(tmp_path):
    folder = tmp_path / "test" / "gravel"  # a path with the name of one of the set's folders
    image, mask = np.full((8, 8), 90, dtype=np.uint8), np.zeros((8, 8), dtype=np.uint8)
    mask[2:5, 3:6] = 255
    for name in ("brick/000", "good/000"):
        save(image, folder / "test" / f"{name}.png")
    save(mask, folder / "ground_truth" / "brick" / "000_mask.png")
    examples = {"defect": folder / "test" / "brick" / "000.png", "good": folder / "test" / "good" / "000.png"}
    maps = {name: np.random.default_rng(seed).random((2, 8, 8)) for seed, name in enumerate(["one", "other"])}
    figure = draw_figure(examples, maps, "Title")
    axes = np.array(figure.axes).reshape(3, 2)
    assert "Title" in figure.get_suptitle()
    assert [each.get_title() for each in axes[0]] == ["defect", "good"]
    assert [each.get_ylabel() for each in axes[1:, 0]] == ["one", "other"]
    assert (axes[0, 0].images[0].get_array() == np.asarray(Image.open(examples["defect"]))).all()
    for row, values in enumerate(maps.values(), start=1):
        for column in range(2):
            (drawn,) = axes[row, column].images
            assert (drawn.get_array() == values[column]).all()
            assert drawn.get_clim() == (0, 1)
            assert len(axes[row, column].collections) == (column == 0)
    vertices = np.concatenate([path.vertices for path in axes[1, 0].collections[0].get_paths()])
    np.testing.assert_allclose(vertices.min(axis=0), (2.5, 1.5), atol=0.1)  # between the pixels: column and row
    np.testing.assert_allclose(vertices.max(axis=0), (5.5, 4.5), atol=0.1)
