# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Search at inference: nearest neighbors of one image's patches, by our search, Anomalib's PatchCore and faiss.

The search has 1,024 queries x 33,000 bank rows x 1,536 dimensions. The bank is a coreset of the patches of Kolektor's
training images. The features are those of all stages of MobileNetV2, twice (see ``wide_features``), since there are no
weights for WideResNet50-2. Queries are the patches of test images, normal and defective ones.

Example::

    python benchmarks/search.py
"""

import argparse
from pathlib import Path

import torch
from anomalib.models.components.dimensionality_reduction import SparseRandomProjection
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import nn

from anomalib_softpatch.components import MemoryBank, NearestNeighborSearch, k_center_greedy, nearest_neighbors
from anomalib_softpatch.components.search.exact import PrunedIndex
from common import describe_machine, measure, parser, wide_features

try:
    import faiss
except ImportError:
    faiss = None


def build_bank(options: argparse.Namespace) -> torch.Tensor:
    """Choose a coreset of the training patches, in PatchCore's way."""
    features = wide_features(options.datasets, options.backbone, options.images)
    torch.manual_seed(0)
    projection = SparseRandomProjection(eps=0.9).fit(features)
    centers = k_center_greedy(projection.transform(features), options.bank, first=0, progress=True)
    return features[centers]


def main() -> None:
    """Build the bank, search with each method in turn, and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=128, help="training images that the bank is chosen from")
    arguments.add_argument("--bank", type=int, default=33_000, help="rows of the bank")
    arguments.add_argument("--bank-file", type=Path, help="keep the bank here, or take it from here if the file exists")
    arguments.add_argument("--repeats", type=int, default=5, help="the shortest time counts")
    options = arguments.parse_args()
    if options.quick:
        options.images, options.bank, options.repeats = 16, 3_300, 2
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    if options.bank_file and options.bank_file.exists():
        bank = torch.load(options.bank_file)
        print(f"The bank is that of {options.bank_file}.")
    else:
        bank = build_bank(options)
        if options.bank_file:
            torch.save(bank, options.bank_file)
    queries = {
        kind: wide_features(options.datasets, options.backbone, 2, f"test/{folder}").split(1024)
        for kind, folder in (("normal", "good"), ("defective", "defect"))
    }

    index, seconds = measure(lambda: PrunedIndex(bank))
    if index.points is None:
        print("The index was not built: bounds of this bank would rule out too little.")
    else:
        axes = index.axes.axes
        size = (index.points.numel() + axes.numel()) * 4
        print(
            f"Index: {seconds:.2f} s to build, {axes.shape[1]} of {bank.shape[1]} axes, {size / 2**20:.0f} MiB "
            f"beside the bank's {bank.numel() * 4 / 2**20:.0f} MiB"
        )
    del index

    patchcore = PatchcoreModel.__new__(PatchcoreModel)  # its search without a backbone
    nn.Module.__init__(patchcore)
    patchcore.register_buffer("memory_bank", bank)
    search = NearestNeighborSearch(MemoryBank(bank, torch.ones(len(bank)), None, ((0, len(bank)),)))
    methods = {
        "Anomalib PatchCore": lambda part: patchcore.nearest_neighbors(part, 1),
        "plain (exported graphs)": lambda part: nearest_neighbors(part, bank),
        "ours": lambda part: search.nearest(part, (0, len(bank))),
    }
    if faiss is None:
        print("faiss is not installed: left out.")
    else:
        faiss.omp_set_num_threads(options.threads)
        flat = faiss.IndexFlatL2(bank.shape[1])
        flat.add(bank.numpy())
        methods["faiss IndexFlatL2"] = lambda part: tuple(map(torch.from_numpy, flat.search(part.numpy(), 1)))

    print(f"\n1024 queries x {len(bank)} x {bank.shape[1]} float32, one image each, shortest of {options.repeats}")
    print(f"{'queries':16}{'method':26}{'s':>8}{'ratio':>8}   same neighbor   largest difference of d, relative")
    for kind, parts in queries.items():
        for number, part in enumerate(parts):
            exact = None
            for method, function in methods.items():
                function(part[:8])  # builds the index
                (distances, indices), seconds = measure(lambda: function(part), options.repeats)  # noqa: B023
                distances = (part.double() - bank[indices.flatten()].double()).norm(dim=1)
                if exact is None:
                    reference, exact, baseline = indices.flatten(), distances, seconds
                same = (indices.flatten() == reference).float().mean()
                difference = ((distances - exact).abs() / exact.clamp_min(1e-12)).max()
                print(
                    f"{f'{kind} {number}':16}{method:26}{seconds:8.3f}{baseline / seconds:8.2f}   {same:14.2%}   "
                    f"{difference:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
