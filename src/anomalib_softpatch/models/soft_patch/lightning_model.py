# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch: PatchCore for training images that contain defects.

Before the memory bank is built, a noise discriminator scores every training patch. The noisiest patches are removed,
and the others are weighted by their scores. Paper: https://arxiv.org/abs/2403.14233
"""

from collections.abc import Sequence
from typing import Any, Literal

from anomalib import PrecisionType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer

from anomalib_softpatch.backbones import DEFAULT_BACKBONE, DEFAULT_LAYERS
from anomalib_softpatch.components.search.approximate import SearchName
from anomalib_softpatch.models.denoising_mixin import DenoisingMixin, Network
from anomalib_softpatch.options import CORESET_SAMPLING_RATIO, LOF_K, MAX_REFERENCES, THRESHOLD


class SoftPatch(DenoisingMixin, AnomalibModule):
    """SoftPatch Lightning module (Jiang et al., NeurIPS 2022).

    With ``threshold=0`` and ``soft_weight=False`` it is PatchCore.

    Args:
        discriminator: How noise is scored: ``"lof"`` (local outlier factor, the paper's best), ``"nearest"``,
            ``"gaussian"`` (Mahalanobis distance); ``"knn"`` (distance to the k-th nearest image) is not in the paper.
        threshold: Share of all training patches that is removed, tau; 0.15 in the paper.
        soft_weight: Weight the patches of the bank by their noise scores: by the local outlier factor itself, or by 1 +
            score for the other discriminators.
        min_images: How many training images must show something for it to be normal: a number, a share of the images,
            or ``"auto"`` (2: the image and another one; for a patch, 3 if one of these looks like a copy of the
            other). Copies of an image count as one. With 1, as in the paper, whatever one image shows is normal unless
            it is removed.
        neighborhood: Compare patches up to this many rows and columns away; ``"image"``: anywhere. 0 in the paper.
        score_smoothing: Standard deviation, in patches, of a Gaussian that smooths the patch scores before the largest
            becomes the image score; 0, as in the paper, for none.
        lof_k: Neighbors of the local outlier factor; k = 6 in the papers (SoftPatch's official code always uses 5).
        max_references: Largest number of patches, chosen at random, to compare each patch with. Time grows with it.
        discriminator_options: Parameters, by name, of a discriminator that was added to those of this package.
        coreset_sampling_ratio: Size of each bank as a share of ALL training patches, including removed ones; 0.1 in the
            papers.
        backbone: Name of a timm model, ``local-dir:<folder>`` for weights on disk, or a module.
        layers: Names of the layers to extract features from, the finest grid first.
        pre_trained: Use pre-trained backbone weights.
        patch_embedding: ``"average"``: each 3 x 3 neighborhood is averaged, as in Anomalib's PatchCore.
            ``"unfold"``: it is kept and pooled to 1,024 values, as in the papers.
        precision: ``"float32"``, ``"float16"`` or ``"bfloat16"`` for the backbone. Distances are always float32.
        num_neighbors: Neighbors that re-weight the image score as in PatchCore; 1, as in the papers, for none.
        search: How memory banks are searched on a CPU: ``"exact"``, or ``"faiss"``, which is approximate, for banks and
            images so large that the exact search takes too long. ``"faiss"`` needs the extra ``faiss``. Exported files
            have the exact search.
        memory_budget: GiB of features to hold in memory while training; the rest goes to a temporary folder on disk.
        feature_cache: Folder that keeps the features of training and validation images, so that later and interrupted
            fits do not compute them again. It can become large, and you can delete it. Default: none.
        noise_report: Write a report of suspicious training images, ``noise_report/``, into the results folder.
        skip_unreadable: Leave out images that cannot be read, and list them in the report's ``skipped.csv``, instead of
            refusing to fit.
        seed: Seed of every random number of a fit, including those of an untrained backbone: equal options give equal
            memory banks, on any number of devices and whatever the data loaders draw.
        pre_processor: Pre-processor (image size, crop, normalization), or whether to use the default one: 256 x 256, no
            crop, statistics of ImageNet.
        post_processor: Post-processor (decision threshold, normalization of scores), or whether to use the default one,
            which takes the threshold from the training images if no defects are labeled.
        evaluator: Evaluator, or whether to use the default one.
        visualizer: Visualizer, or whether to use the default one.

    Raises:
        ValueError: If an argument is out of range or unknown.
        RuntimeError: If the backbone's weights are not available.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_softpatch import SoftPatch
        >>> model = SoftPatch(threshold=0.15)  # doctest: +SKIP
        >>> Engine().fit(model, datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    def __init__(
        self,
        discriminator: str = "lof",
        threshold: float = THRESHOLD,
        *,
        soft_weight: bool = True,
        min_images: int | float | Literal["auto"] = 1,
        neighborhood: int | Literal["image"] = 0,
        score_smoothing: float = 0.0,
        lof_k: int = LOF_K,
        max_references: int = MAX_REFERENCES,
        discriminator_options: dict[str, Any] | None = None,
        coreset_sampling_ratio: float = CORESET_SAMPLING_RATIO,
        backbone: str | Network = DEFAULT_BACKBONE,
        layers: Sequence[str] = DEFAULT_LAYERS,
        pre_trained: bool = True,
        patch_embedding: Literal["average", "unfold"] = "average",
        precision: str | PrecisionType = "float32",
        num_neighbors: int = 1,
        search: SearchName = "exact",
        memory_budget: float | None = None,
        feature_cache: str | None = None,
        noise_report: bool = True,
        skip_unreadable: bool = False,
        seed: int = 0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            discriminators=(discriminator,), thresholds=(threshold,),
            soft_weight=soft_weight, min_images=min_images, neighborhood=neighborhood, score_smoothing=score_smoothing,
            lof_k=lof_k, max_references=max_references, discriminator_options=discriminator_options,
            coreset_sampling_ratio=coreset_sampling_ratio, backbone=backbone, layers=layers, pre_trained=pre_trained,
            patch_embedding=patch_embedding, precision=precision, num_neighbors=num_neighbors, search=search,
            memory_budget=memory_budget, feature_cache=feature_cache, noise_report=noise_report,
            skip_unreadable=skip_unreadable, seed=seed, pre_processor=pre_processor, post_processor=post_processor,
            evaluator=evaluator, visualizer=visualizer,
        )  # fmt: skip
