# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Our coreset selection against Anomalib's KCenterGreedy, on the same features, from the same first center.

The features are 327,680 patches of 320 normal Kolektor images (MobileNetV2, 128 channels), projected to 313 dimensions
with Anomalib's SparseRandomProjection. With 3,276 centers (1 %), both run in full, about 8 minutes on two cores. With
32,768 (10 %), Anomalib's time is extrapolated, since each of its centers takes the same time.

Example::

    python benchmarks/coreset.py
"""

import torch
from anomalib.models.components import KCenterGreedy
from anomalib.models.components.dimensionality_reduction import SparseRandomProjection

from anomalib_softpatch.components import k_center_greedy
from common import Identity, describe_machine, kolektor_features, measure, parser


def main() -> None:
    """Choose coresets, compare the centers, and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=320, help="images of 1,024 patches each")
    arguments.add_argument("--anomalib-centers", type=int, default=3_276, help="centers that Anomalib's chooses")
    arguments.add_argument("--centers", type=int, nargs="+", default=[3_276, 32_768], help="centers that ours chooses")
    options = arguments.parse_args()
    if options.quick:
        options.images, options.anomalib_centers, options.centers = 16, 163, [163, 1_638]
    torch.set_num_threads(options.threads)
    print(describe_machine(), flush=True)

    features = kolektor_features(options.datasets, options.backbone, options.images).flatten(0, 2)
    torch.manual_seed(0)
    features = SparseRandomProjection(eps=0.9).fit(features).transform(features)
    print(f"{features.shape[0]} patches x {features.shape[1]} dimensions, float32", flush=True)

    sampler = KCenterGreedy(features, sampling_ratio=0.01)
    sampler.model = Identity()
    sampler.coreset_size = options.anomalib_centers
    chosen, seconds = measure(lambda: torch.tensor(sampler.select_coreset_idxs()))
    print(f"\nAnomalib, {len(chosen)} centers: {seconds:.1f} s, {1000 * seconds / len(chosen):.1f} ms a center")
    for count in options.centers:
        ours, ours_seconds = measure(lambda: k_center_greedy(features, count, int(chosen[0]), progress=True))  # noqa: B023
        common = min(len(ours), len(chosen))
        same = torch.equal(ours[:common], chosen[:common])
        baseline = seconds * count / len(chosen)
        origin = "measured" if count == len(chosen) else f"extrapolated from {len(chosen)} centers"
        print(
            f"{count} centers: ours {ours_seconds:.2f} s, Anomalib {baseline:.1f} s ({origin}), "
            f"ratio {baseline / ours_seconds:.1f}; first {common} centers and their order "
            f"{'the same' if same else 'DIFFERENT'}",
            flush=True,
        )
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
