# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The gain and the cost of a larger image size, or of tiles.

Large images are resized in several ways: to 256 x 256, to the same number of pixels in their own aspect ratio (the
commands' default), to larger sizes, and, in tiles, not at all. SoftPatchPlus is fitted with its defaults, with and
without noise. Maps and masks of all ways are compared at one size, a fraction of the images' own.

``--save`` has the numbers of every run:

- ``image``, ``pixel``: AUROC in %;
- ``had 5``, ``found 5``: false alarms on good test images and defects found, in %, at the threshold without labels for
  5 % of false alarms;
- ``fit``: processor time in seconds of a whole fit, from decoded images;
- ``per image``: processor time in seconds of the score and the map of a test image;
- ``bank``: rows of the memory bank, in thousands;
- ``peak``: increase of the resident memory during a fit and the scores, in MiB.

Every way is measured in its own process. Run again with the same file, the script continues where it stopped.

Example::

    python benchmarks/image_size.py --category visa_macaroni1_full --threads 1 --seeds 0 --save image_size.json
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn.functional import interpolate

from ablation import set_of
from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.components.tiles import make_tiler
from anomalib_softpatch.data import NoisyDataModule
from anomalib_softpatch.image_size import described, typical_image
from anomalib_softpatch.images.reading import read_image
from anomalib_softpatch.models import SoftPatchModel
from common import PeakMemory, accuracy_parser, describe_machine, in_process, print_table, save_results
from robustness import SETTINGS, heading, read_rows

Figures = dict[str, float]
KEPT, TILES = "kept", "tiles"
KEYS = ("image", "pixel")


def paths_of(options: argparse.Namespace, ratio: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Return the training images and the test images. Both include the injected images."""
    wrapped = set_of(Path(options.root), options.category)
    datamodule = NoisyDataModule(wrapped, noise_ratio=ratio, overlap=True, seed=seed)
    datamodule.prepare_data()
    datamodule.setup()
    train, test = (
        data.samples["image_path"].map(Path).tolist() for data in (datamodule.train_data, datamodule.test_data)
    )
    return train, test


def mask_of(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a test image at a size, shape ``size``."""
    if path.parent.name == "good":
        return np.zeros(size, dtype=bool)
    file = path.parents[2] / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    with Image.open(file) as image:
        return np.array(image.convert("L").resize(size[::-1], Image.Resampling.NEAREST)) > 0


def measure(options: argparse.Namespace, way: Sequence[Any], ratio: float, seed: int) -> Figures:
    """Fit and score in one way, in this process.

    Args:
        options: Options of the command line.
        way: Height and width that images are resized to, tile size and stride or ``None``, and the coreset's ratio.
        ratio: Noise ratio.
        seed: Seed of noise and fit.
    """
    height, width, tiles, coreset = way
    train, test = paths_of(options, ratio, seed)
    transform = SoftPatch.configure_pre_processor((height, width)).transform
    default = dict(SETTINGS["default"])
    model = SoftPatchModel(
        options.layers, options.backbone, score_smoothing=default.pop("model.score_smoothing"),
        memory_bank_builder=DenoisingMemoryBank(**default, coreset_sampling_ratio=coreset, seed=seed),
    ).eval()  # fmt: skip
    model.tiler = make_tiler(tiles)
    masks = np.stack([mask_of(path, options.map_size) for path in test])
    maps = np.zeros(masks.shape, dtype=np.float32)
    scores = []

    def images(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
        """Yield decoded images; the time of decoding does not count."""
        for path in paths:
            started = time.process_time()
            image, _ = read_image(path)
            clock[0] += time.process_time() - started
            yield torch.from_numpy(image)[None]

    clock = [0.0]
    with PeakMemory() as memory, torch.no_grad():
        started = time.process_time()
        for image in images(train):
            model.feature_store.append(model.extract(transform(image)))
        model.fit((height, width))
        fit = time.process_time() - started - clock[0]
        clock[0], started = 0.0, time.process_time()
        for number, image in enumerate(images(test)):
            result = model.score(model.extract(transform(image)), (height, width))
            scores.append(float(result.pred_score))
            began = time.process_time()
            maps[number] = interpolate(result.anomaly_map, options.map_size, mode="bilinear", antialias=True)[0, 0]
            clock[0] += time.process_time() - began
        each = (time.process_time() - started - clock[0]) / len(test)
    anomalous = np.array([path.parent.name != "good" for path in test])
    assert model.out_of_bag is not None
    above = np.array(scores) > float(false_alarm_threshold(model.out_of_bag.image_scores, 0.05))
    return {
        "seed": float(seed),
        "image": 100 * float(roc_auc_score(anomalous, scores)),
        "pixel": 100 * float(roc_auc_score(masks.ravel(), maps.ravel())),
        "had 5": 100 * float(above[~anomalous].mean()),
        "found 5": 100 * float(above[anomalous].mean()),
        "fit": fit,
        "per image": each,
        "bank": len(model.weights) / 1000,
        "peak": memory.peak / 2**20,
    }


def ways_of(options: argparse.Namespace) -> dict[str, tuple[int, int, dict[str, Any] | None, float]]:
    """Return the ways to measure, by name."""
    folder = Path(options.root, options.category, "train", "good")
    typical = typical_image(sorted(folder.iterdir()))
    ways: dict[str, tuple[int, int, dict[str, Any] | None, float]] = {}
    for text in options.sizes:
        if text == KEPT:
            ways[f"{described(typical.model_size)} (aspect ratio kept)"] = (*typical.model_size, None, options.coreset)
        elif text == TILES:
            size, (tile, stride) = (typical.height, typical.width), options.tile
            ways[f"{described(size)} in tiles of {tile} every {stride}, coreset {options.tile_coreset:.3g}"] = (
                *size, {"tile_size": [tile, tile], "stride": [stride, stride]}, options.tile_coreset,
            )  # fmt: skip
        else:
            height, width = map(int, text.split("x"))
            ways[described((height, width))] = (height, width, None, options.coreset)
    return ways


def main() -> None:
    """Measure all ways, and print the tables."""
    parser = accuracy_parser(__doc__, ratios=[0, 0.1], continues=True)
    parser.set_defaults(category="visa_macaroni1_full", seeds=[0])
    parser.add_argument("--sizes", nargs="+", default=["256x256", KEPT, "512x768", TILES],
                        help=f"HEIGHTxWIDTH, {KEPT} (aspect ratio) or {TILES} (at the images' own size)")  # fmt: skip
    parser.add_argument("--tile", type=int, nargs=2, default=[512, 384], help="side and stride of tiles")
    parser.add_argument("--tile-coreset", type=float, default=0.001, help="with tiles, which give many patches")
    parser.add_argument(
        "--map-size", type=int, nargs=2, default=[500, 750], help="at which maps are compared with masks"
    )
    parser.add_argument("--quick", action="store_true", help="without noise, to see that it works")
    options = parser.parse_args()
    options.ratios = options.ratios[:1] if options.quick else options.ratios
    options.map_size = tuple(options.map_size)
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    network = Path(options.backbone.removeprefix("local-dir:")).name
    title = (
        f"Image / pixel AUROC in % of SoftPatchPlus on {options.category} against the noise ratio: {network}, "
        f"{' + '.join(options.layers)}, coreset {options.coreset:.3g}"
    )
    headings = ["", *map(heading, options.ratios)]
    ways = ways_of(options)
    rows, commits = read_rows(options.save, title, headings)
    rows = {name: rows.get(name, [[] for _ in options.ratios]) for name in [*rows, *ways]}
    save = partial(save_results, options.save, title, headings, rows, KEYS, commit=commits)
    for number, ratio in enumerate(options.ratios):
        for name, way in ways.items():
            known = {run["seed"] for run in rows[name][number]}
            for seed in (seed for seed in options.seeds if seed not in known):
                figures = in_process(options.threads, measure, options, way, ratio, seed)
                rows[name][number].append(figures)
                print(f"# {name}, {ratio:.0%}: " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items()), flush=True)
                save()
    for keys in (KEYS, ("fit", "per image"), ("peak",), ("had 5", "found 5")):
        print()
        print_table([" / ".join(keys), *headings[1:]], rows, keys)


if __name__ == "__main__":
    main()
