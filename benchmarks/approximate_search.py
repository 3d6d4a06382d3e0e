# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""faiss' approximate search compared with the exact one: its loss of accuracy, and its gain in speed.

Accuracy: SoftPatch on Kolektor with MobileNetV2 and a coreset of 0.1. Both searches score the test images of one fit.

Speed: one image of 1,024 px (16,384 patches) against a bank of 100,000 rows x 1,536, a coreset of patches of training
images of that size. The features are those of all stages of MobileNetV2, twice (see ``wide_features``), since there are
no weights for WideResNet50-2. Normal and defective images are searched, since the search differs for patches far from
the bank. HNSW, on the same reduced rows, is the other index that was considered. Searches take turns; times are
processor times of all threads.

Example::

    python benchmarks/approximate_search.py --threads 1
"""

import argparse
from typing import Any

import faiss
import numpy as np
import torch
from anomalib.models.components.dimensionality_reduction import SparseRandomProjection
from sklearn.metrics import roc_auc_score

from ablation import extract
from anomalib_softpatch.components import DenoisingMemoryBank, k_center_greedy
from anomalib_softpatch.components.search.approximate import SEARCHES, ApproximateIndex
from anomalib_softpatch.components.search.exact import Index, PrunedIndex
from anomalib_softpatch.models import SoftPatchModel
from common import accuracy_parser, describe_machine, measure_processor, print_table, save_results, wide_features

# name -> search -> number
Results = dict[str, dict[str, float]]


def note(results: Results, name: str, search: str, value: float) -> None:
    """Keep a number for the table."""
    results.setdefault(name, {})[search] = value
    print(f"# {name}, {search}: {value:.4g}", flush=True)


class HierarchicalGraphIndex(ApproximateIndex):
    """HNSW (Malkov and Yashunin, 2018) on the reduced rows, instead of the inverted file."""

    def _build(self, points: np.ndarray) -> Any:
        index = faiss.IndexHNSWFlat(points.shape[1], 16)
        index.hnsw.efSearch = 64
        index.add(points)
        return index


INDEXES = {"exact": PrunedIndex, "faiss": ApproximateIndex, "HNSW": HierarchicalGraphIndex}


def recall(distances: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the share of queries, in %, whose nearest row was found, or one as near."""
    return 100 * float((distances <= exact * (1 + 1e-6)).float().mean())


def measure_accuracy(arguments: argparse.Namespace, results: Results) -> None:
    """Fit once for each noise ratio and seed, and score with each search."""
    model = SoftPatchModel(arguments.layers, arguments.backbone).eval()
    for ratio in arguments.ratios:
        for seed in arguments.seeds:
            features = extract(model, ratio, seed, overlap=True, rotated=False, arguments=arguments)
            model.memory_bank_builder = DenoisingMemoryBank(coreset_sampling_ratio=arguments.coreset, seed=seed)
            model.search = "exact"
            model.feature_store.append(features.train)
            model.fit()
            size = features.masks.shape[-2:]
            exact = None
            for name in SEARCHES:
                model.search = name
                with torch.no_grad():
                    parts = [model.score(part, size) for part in features.test.split(8)]
                    (whole,) = model._search.bank.parts
                    distances, _ = model._search.nearest(features.test[::8].flatten(0, 2), whole)
                exact = distances if exact is None else exact
                scores = torch.cat([part.pred_score for part in parts])
                maps = torch.cat([part.anomaly_map for part in parts])
                rows, columns = model.memory_bank.shape
                where = f"{ratio:.0%} noise, seed {seed}, bank of {rows} x {columns}"
                note(results, f"image AUROC [%], {where}", name, 100 * roc_auc_score(features.labels, scores))
                pixel = 100 * roc_auc_score(features.masks.flatten(), maps.flatten())
                note(results, f"pixel AUROC [%], {where}", name, pixel)
                note(results, f"nearest row found [%], {where}", name, recall(distances, exact))


@torch.no_grad()
def build_bank(arguments: argparse.Namespace) -> torch.Tensor:
    """Choose a coreset of the patches of training images, in PatchCore's way."""
    features = wide_features(
        arguments.root, arguments.backbone, arguments.images, size=arguments.size, patches=arguments.patches
    )
    torch.manual_seed(0)
    projected = SparseRandomProjection(eps=0.9).fit(features).transform(features)
    return features[k_center_greedy(projected, arguments.rows, first=0)]


def index_size(index: Index) -> float:
    """Return the memory of an index in addition to its bank, in MiB."""
    if isinstance(index, ApproximateIndex):
        axes = 0 if index.axes is None else index.axes.axes.numel()
        return (faiss.serialize_index(index.index).nbytes + 4 * axes) / 2**20
    assert isinstance(index, PrunedIndex)
    return 0.0 if index.points is None else 4 * (index.points.numel() + index.axes.axes.numel()) / 2**20


def measure_speed(arguments: argparse.Namespace, results: Results) -> None:
    """Search a large bank for the patches of large images, with the searches in turn."""
    bank = build_bank(arguments)
    indexes: dict[str, Index] = {}
    for name, index_type in INDEXES.items():
        indexes[name], took = measure_processor(lambda: index_type(bank))  # noqa: B023
        note(results, f"index of {len(bank)} x {bank.shape[1]} built [s]", name, took)
        note(results, "index [MiB]", name, index_size(indexes[name]))
    for kind, title in {"good": "normal", "defect": "defective"}.items():
        queries = wide_features(arguments.root, arguments.backbone, 1, f"test/{kind}", arguments.size)
        where = f"{title} image, {len(queries)} x {len(bank)} x {bank.shape[1]}"
        times: dict[str, list[float]] = {name: [] for name in indexes}
        found = {}
        for _ in range(arguments.repeats):
            for name, index in indexes.items():
                (found[name], _), took = measure_processor(lambda: index.nearest(queries))  # noqa: B023
                times[name].append(took)
                print(f"# {where}, {name}: {took:.2f} s", flush=True)
        exact = found["exact"]
        for name, distances in found.items():
            median = float(np.median(times[name]))
            note(results, f"search [s], {where}", name, median)
            note(results, f"times as fast, {where}", name, float(np.median(times["exact"])) / median)
            note(results, f"nearest row found [%], {where}", name, recall(distances, exact))
            longer = distances / exact.clamp_min(1e-12) - 1
            print(f"# {where}, {name}: distances longer by {longer.mean():.3%}, at most by {longer.max():.1%}")
            note(
                results,
                f"largest distance longer by [%], {where}",
                name,
                100 * float(distances.max() / exact.max() - 1),
            )


def main() -> None:
    """Print the table."""
    parser = accuracy_parser(__doc__, ratios=[0.1])
    parser.set_defaults(coreset=0.1, seeds=[0, 1, 2])
    parser.add_argument("--size", type=int, default=1024, help="height and width of the large image")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the bank")
    parser.add_argument("--images", type=int, default=64, help="images that the bank is chosen from")
    parser.add_argument("--patches", type=int, default=4096, help="patches of each of them, at random")
    parser.add_argument("--repeats", type=int, default=5, help="searches of each image, by each search in turn")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rows, arguments.images, arguments.patches = 256, 3000, 8, 1024
        arguments.repeats, arguments.coreset, arguments.seeds = 2, 0.01, [0]
    torch.set_num_threads(arguments.threads)
    print(describe_machine(), flush=True)

    results: Results = {}
    measure_accuracy(arguments, results)
    measure_speed(arguments, results)
    rows = {
        name: [[{"value": values[search]}] if search in values else [] for search in INDEXES]
        for name, values in results.items()
    }
    headings = ["", *INDEXES]
    title = (
        f"The approximate search, by faiss {faiss.__version__}, against the exact one (times are medians of "
        f"{arguments.repeats} searches)"
    )
    save_results(arguments.save, title, headings, rows, ["value"])
    print_table(headings, rows, ["value"])


if __name__ == "__main__":
    main()
