# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of SoftPatch and SoftPatch+: patch features, search in the memory banks, scores and map.

Papers: https://arxiv.org/abs/2403.14233 (SoftPatch), https://arxiv.org/abs/2412.20870 (SoftPatch+)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import DynamicBufferMixin
from anomalib.models.image.patchcore.anomaly_map import AnomalyMapGenerator
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.backbones import DEFAULT_BACKBONE
from anomalib_softpatch.components import (
    DenoisingMemoryBank,
    DenoisingResult,
    FeatureCache,
    FeatureStore,
    MemoryBank,
    NearestNeighborSearch,
    PatchFeatureExtractor,
    nearest_neighbors,
)
from anomalib_softpatch.components.out_of_bag import OutOfBagScores
from anomalib_softpatch.components.search import Search
from anomalib_softpatch.components.search.approximate import SEARCHES, SearchName, check_search
from anomalib_softpatch.components.search.graph import GraphSearch
from anomalib_softpatch.components.search.scores import score_by_banks
from anomalib_softpatch.components.self_check import FitFacts, gather_facts
from anomalib_softpatch.components.smoothing import smooth
from anomalib_softpatch.components.support_radii import groups_that_count
from anomalib_softpatch.components.teaching import DefectBank, FitRecord, Lesson, from_plain, join, map_scores, to_plain
from anomalib_softpatch.components.tiles import extract_by_tiles, make_tiler, tiles_of
from anomalib_softpatch.components.tracing import is_traced
from anomalib_softpatch.options import check

if TYPE_CHECKING:
    from anomalib.data.utils.tiler import Tiler


# Training images that are scored out of bag: enough for a share of false alarms of a few percent
OUT_OF_BAG_IMAGES = 128
# Buffers that a checkpoint of a taught model has in its extra state, and their values in other models
TAUGHT = {
    "defects": torch.empty(0),
    "defect_scales": torch.empty(0),
    "defect_threshold": torch.tensor(0.0),
    "ignored": torch.empty(0, dtype=torch.bool),
}


class SoftPatchModel(DynamicBufferMixin, nn.Module):
    """Score images against memory banks of denoised, weighted patches.

    In training mode, a forward pass stores the patch features. :meth:`fit` turns them into the memory banks. In
    evaluation mode, a forward pass returns scores and maps.

    The score of a patch is its Euclidean distance to the nearest patch of the bank times the weight of that patch; the
    weight does not affect which patch is nearest (SoftPatch, equation 8). If patches of the bank have support radii,
    the mutual reachability distance replaces the distance, see :mod:`anomalib_softpatch.components.support_radii`. The
    official code uses squared distances, which its search library returns. On real images, both rank alike.

    Args:
        memory_bank_builder: How to build the banks: the first one gives the image score, the last one the map.
        upsampling: How patch scores become a map of the image's size before they are smoothed.

    The other options: see :class:`~anomalib_softpatch.models.SoftPatch`.

    Attributes:
        tiler: Set by Anomalib's tiling callback, or by a checkpoint of a model that had one.
        feature_cache: Looks up features on disk; ``None`` except during a fit with that option.
        memory_bank: Patches of all banks, shape ``(m, channels)``.
        weights: Weight of each, shape ``(m,)``.
        radii: Support radius of each, shape ``(m,)``; zeros where they have none.
        bank_ranges: Rows ``(start, stop)`` of each bank.
        denoising: What the last fit found (scores of all training patches, kept patches); ``None`` after loading.
        out_of_bag: Scores of training images as if they had not been in training; ``None`` after loading.
        fit_facts: Facts about the last fit, for the self-check; ``None`` after loading.
        record: Record of the fit, for teaching; ``None`` without a fit, and in models from before 0.3.
        lessons: What the model was taught.
        untaught_thresholds: Thresholds of image scores and maps before it was taught; ``None`` if it was not.
        taught_threshold: Threshold of image scores that teaching has set; ``None`` if it was not taught.
        defects: Patches of defects that it was taught, shape ``(d, channels)``.
        defect_scales, defect_threshold: See :class:`DefectBank`.
        ignored: Patches to ignore, boolean of shape ``(grid_height, grid_width)``, or empty for none.
    """

    memory_bank: torch.Tensor
    weights: torch.Tensor
    radii: torch.Tensor
    defects: torch.Tensor
    defect_scales: torch.Tensor
    defect_threshold: torch.Tensor
    ignored: torch.Tensor

    def __init__(
        self,
        layers: Sequence[str],
        backbone: str | nn.Module = DEFAULT_BACKBONE,
        pre_trained: bool = True,
        num_neighbors: int = 1,
        patch_embedding: Literal["average", "unfold"] = "average",
        memory_bank_builder: DenoisingMemoryBank | None = None,
        score_smoothing: float = 0.0,
        search: SearchName = "exact",
        upsampling: Literal["bilinear", "nearest"] = "bilinear",
        memory_budget: float | None = None,
    ) -> None:
        super().__init__()
        check(num_neighbors=num_neighbors, memory_budget=memory_budget, score_smoothing=score_smoothing)
        check_search(search)
        self.search = search
        self.tiler: Tiler | None = None
        self.feature_cache: FeatureCache | None = None
        self.score_smoothing = score_smoothing
        self.num_neighbors = num_neighbors
        self.upsampling = upsampling
        self.feature_extractor = PatchFeatureExtractor(backbone, layers, pre_trained, patch_embedding)
        self.anomaly_map_generator = AnomalyMapGenerator()
        self.memory_bank_builder = memory_bank_builder or DenoisingMemoryBank()
        self.feature_store = FeatureStore(memory_budget=None if memory_budget is None else memory_budget * 2**30)
        self.denoising: DenoisingResult | None = None
        self.out_of_bag: OutOfBagScores | None = None
        self.fit_facts: FitFacts | None = None
        self._search: NearestNeighborSearch | None = None
        self._graph_search: GraphSearch | None = None

        self.record: FitRecord | None = None
        self.lessons: list[Lesson] = []
        self.untaught_thresholds: tuple[float, float] | None = None
        self.taught_threshold: float | None = None

        for name in ("memory_bank", "weights", "radii"):
            self.register_buffer(name, torch.empty(0))
        self._radii_count = False
        self.bank_ranges: tuple[tuple[int, int], ...] = ()
        for name, untaught in TAUGHT.items():
            self.register_buffer(name, untaught.clone(), persistent=False)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint stores besides the buffers: plain data, which loads without unpickling code."""
        state: dict[str, Any] = {"banks": [list(rows) for rows in self.bank_ranges], "tiles": tiles_of(self.tiler)}
        if self.record is not None:
            state["teaching"] = to_plain(self.record, self.lessons)
            state["untaught_thresholds"] = self.untaught_thresholds
            state["taught_threshold"] = self.taught_threshold
        if self.defects.numel() or self.ignored.numel():
            state |= {name: getattr(self, name) for name in TAUGHT}
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self.bank_ranges = tuple((start, stop) for start, stop in state["banks"])
        if "tiles" in state:  # checkpoints from before 0.3 do not store them
            self.tiler = make_tiler(state["tiles"])
        self.record, self.lessons = from_plain(state["teaching"]) if "teaching" in state else (None, [])
        self.untaught_thresholds = state.get("untaught_thresholds")
        self.taught_threshold = state.get("taught_threshold")
        for name, untaught in TAUGHT.items():  # forgets what the model was taught before
            setattr(self, name, state.get(name, untaught.clone()).to(self.memory_bank.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load the buffers; checkpoints from before 0.3 have no radii."""
        weights = state_dict.get(f"{prefix}weights")
        if weights is not None:
            state_dict.setdefault(f"{prefix}radii", torch.zeros_like(weights))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._radii_count = bool(self.radii.any())
        if self.record is not None and self.untaught_thresholds is None:  # both share one bank in memory
            fits = self.record.bank.features.shape == self.memory_bank.shape
            self.record = replace(self.record, bank=self._bank) if fits else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave indexes and the last fit's findings about the training images out of copies and exported files."""
        return self.__dict__ | {
            "denoising": None,
            "out_of_bag": None,
            "fit_facts": None,
            "record": None,
            "lessons": [],
            "feature_cache": None,
            "_search": None,
        }

    def forward(self, input_tensor: torch.Tensor, keys: Sequence[str] | None = None) -> torch.Tensor | InferenceBatch:
        """Store features (training) or score images (evaluation).

        Args:
            input_tensor: Images of shape ``(batch, 3, height, width)``.
            keys: In training, keys that identify and order the images, see :class:`FeatureStore`.

        Returns:
            In training, features of shape ``(batch, grid_height, grid_width, channels)``; otherwise see :meth:`score`.
        """
        features = self.extract(input_tensor)
        if self.training:
            self.feature_store.append(features, keys)
            return features
        return self.score(features, input_tensor.shape[-2:])

    @torch.no_grad()
    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of all patches, shape ``(batch, grid_height, grid_width, channels)``."""
        return extract_by_tiles(self.feature_cache or self.feature_extractor, images, self.tiler)

    def score(
        self, features: torch.Tensor, size: torch.Size | tuple[int, int], left_out: torch.Tensor | None = None
    ) -> InferenceBatch:
        """Score images by their features.

        Args:
            features: Shape ``(batch, grid_height, grid_width, channels)``.
            size: Height and width of the maps.
            left_out: Rows of the memory bank that do not count, boolean of shape ``(m,)``. Default: all count.

        Returns:
            Scores of shape ``(batch,)`` and maps of shape ``(batch, 1, height, width)``.

        Raises:
            RuntimeError: If there is no memory bank to compare with.
        """
        image_scores, map_scores = self._score(features, left_out)
        anomaly_map = self._make_map(map_scores, size)
        if self.ignored.numel():  # smoothing has spread scores there
            seen = (~self.ignored).to(anomaly_map.dtype)[None, None]
            anomaly_map = anomaly_map * F.interpolate(seen, size=size, mode="nearest")
        return InferenceBatch(pred_score=image_scores, anomaly_map=anomaly_map)

    def _score(self, features: torch.Tensor, left_out: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of images, and of their patches for maps: ``(batch, 1, grid_height, grid_width)``."""
        if not self.bank_ranges:
            msg = "The memory bank is empty: train the model (fit), or load a trained one with ckpt_path."
            raise RuntimeError(msg)
        batch_size, height, width, channels = features.shape
        queries = features.reshape(-1, channels)
        # Version 0.2 gave some banks an additional coordinate, which is 0 in queries
        queries = F.pad(queries, (0, self.memory_bank.shape[1] - channels)).to(self.memory_bank.dtype)
        bank, shape = self._bank, (batch_size, height, width)
        search: Search
        if is_traced():
            graph = self._graph_search
            search = NearestNeighborSearch(bank) if graph is None else graph.in_graph(bank.features, queries)
        else:
            search = self._search_of_bank(bank, left_out)
        counts = None if not self.ignored.numel() else (~self.ignored).to(queries.dtype)
        scores, nearest, scores_of_map = score_by_banks(search, queries, bank, shape, self.score_smoothing, counts)
        image_scores = self._score_images(scores, nearest, queries, left_out)
        if self.defects.numel():
            raised = self.defect_bank.score(scores_of_map, queries)
            scores_of_map = torch.maximum(scores_of_map, raised)
            image_scores = torch.maximum(image_scores, raised.amax(dim=1))
        return image_scores, scores_of_map.view(batch_size, 1, height, width)

    def fit(self, map_size: tuple[int, int] | None = None) -> None:
        """Build the memory banks from the stored features, and clear these.

        Args:
            map_size: Height and width of the anomaly maps. If given, maps are scored out of bag, too.
        """
        try:
            result = self.memory_bank_builder.fit(self.feature_store)
            self.set_memory_bank(result)
            self.denoising = result
            self.out_of_bag, self.fit_facts, self.record = self._score_out_of_bag(result, map_size)
        finally:
            self.feature_store.clear()

    @torch.no_grad()
    def _score_out_of_bag(
        self, result: DenoisingResult, map_size: tuple[int, int] | None
    ) -> tuple[OutOfBagScores, FitFacts, FitRecord]:
        """Score training images without the rows of the banks that they or their copies added, and gather facts."""
        images, height, width, _ = self.feature_store.shape
        patches = height * width
        indices = result.indices
        groups = groups_that_count(result.groups.to(indices.device))
        group_of_row = groups[indices // patches]
        chosen = torch.linspace(0, images - 1, min(images, OUT_OF_BAG_IMAGES)).round().long().tolist()
        maps, image_scores = [], []
        search = self._search_of_bank(self._bank)
        for image in chosen:
            own = torch.arange(image * patches, (image + 1) * patches, device=indices.device)
            features = self.feature_store.rows(own).view(height, width, -1)
            maps.append(map_scores(search, features, group_of_row, int(groups[image])))
            if self.num_neighbors > 1:
                image_scores.append(self._score(features[None], group_of_row == groups[image])[0])
        joined = join(maps)
        scores = self.score_maps(joined.scores, map_size)
        if self.num_neighbors > 1:  # then the image score is not just the largest patch score
            scores = OutOfBagScores(torch.cat(image_scores), scores.map_peaks)
        record = FitRecord(
            bank=self._bank,
            groups=group_of_row,
            places=indices % patches,
            support=result.support_images,
            factors=result.support,
            maps=joined,
            keys=result.keys,
            group_of_image=groups,
        )
        facts = gather_facts(self.feature_store, result, groups, torch.tensor(chosen), scores.image_scores)
        return scores, facts, record

    def score_maps(self, scores: torch.Tensor, map_size: tuple[int, int] | None) -> OutOfBagScores:
        """Return the image scores and the peaks of the anomaly maps that follow from patch scores.

        Args:
            scores: Scores against the first and the last bank, shape ``(n, banks, grid_height, grid_width)``.
            map_size: Height and width of the anomaly maps; ``None``: no maps are made.
        """
        image_scores = smooth(scores[:, 0], self.score_smoothing).flatten(1).amax(dim=1)
        peaks = torch.empty(0)
        if map_size is not None:
            peaks = torch.cat([self._make_map(each[None, -1:], map_size).amax(dim=(1, 2, 3)) for each in scores])
        return OutOfBagScores(image_scores, peaks)

    def set_memory_bank(self, bank: MemoryBank) -> None:
        """Replace the memory banks, and forget the results of a fit and of teaching."""
        self.replace_banks(bank)
        self.denoising, self.out_of_bag, self.fit_facts = None, None, None
        self.record, self.lessons, self.untaught_thresholds, self.taught_threshold = None, [], None, None
        self.defects, self.ignored = self.memory_bank[:0], torch.empty(0, dtype=torch.bool)

    def replace_banks(self, bank: MemoryBank) -> None:
        """Replace the memory banks alone."""
        self.memory_bank = bank.features
        self.weights = bank.weights
        self.radii = torch.zeros_like(bank.weights) if bank.radii is None else bank.radii
        self._radii_count = bool(self.radii.any())
        self.bank_ranges = tuple((start, stop) for start, stop in bank.bank_ranges)
        self._search = None

    @contextmanager
    def pruned_graphs(self) -> Iterator[None]:
        """Give graphs that are recorded in the block a pruned search of the memory banks, if one is faster.

        The index goes into the graph as constants, a sixth of the banks' size or less. It is dropped after the block,
        so that no graph can have the index of banks that were replaced.
        """
        if self.bank_ranges:
            self._graph_search = GraphSearch.build(self._bank)
        try:
            yield
        finally:
            self._graph_search = None

    @property
    def defect_bank(self) -> DefectBank:
        """Defects that the model was taught."""
        return DefectBank(self.defects, self.defect_scales, self.defect_threshold)

    @defect_bank.setter
    def defect_bank(self, bank: DefectBank) -> None:
        self.defects, self.defect_scales, self.defect_threshold = bank.features, bank.scales, bank.threshold

    @property
    def ignored_patches(self) -> torch.Tensor | None:
        """Patches to ignore, boolean of shape ``(grid_height, grid_width)``; ``None`` for none."""
        return self.ignored if self.ignored.numel() else None

    @property
    def _bank(self) -> MemoryBank:
        """The memory banks as they are searched."""
        # A recorded graph cannot depend on values, so whether radii count is determined beforehand
        return MemoryBank(self.memory_bank, self.weights, self.radii if self._radii_count else None, self.bank_ranges)

    def _search_of_bank(self, bank: MemoryBank, left_out: torch.Tensor | None = None) -> NearestNeighborSearch:
        """Return a search for use outside of graphs, which keeps the indexes of an earlier one."""
        search = self._search
        if search is None or type(search) is not SEARCHES[self.search] or not search.is_of(bank):
            search = SEARCHES[self.search](bank)
            # On other devices it has no indexes to keep, and the bank may leave the device
            self._search = search if bank.features.device.type == "cpu" else None
        return search if left_out is None else search.without(left_out)

    def _score_images(
        self, scores: torch.Tensor, nearest: torch.Tensor, queries: torch.Tensor, left_out: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the score of each image, shape ``(batch,)``; symbols as in PatchCore, section 3.3."""
        if self.num_neighbors == 1:
            return scores.amax(dim=1)
        score, position = scores.max(dim=1, keepdim=True)  # s^* and m^test,*
        feature = queries.view(*scores.shape, -1).gather(1, position[..., None].expand(-1, -1, queries.shape[1]))
        start, stop = self.bank_ranges[0]
        bank, count = self.memory_bank[start:stop], stop - start
        if left_out is not None:
            bank = bank[~left_out[start:stop]]
            count = len(bank)
        if not count:  # an infinite score stays what it is
            return score.squeeze(1)
        nearest_patch = self.memory_bank[nearest.gather(1, position).squeeze(1)]  # m^*
        _, support = nearest_neighbors(nearest_patch, bank, k=min(self.num_neighbors, count))  # N_b(m^*)
        distances = (feature - bank[support]).square().sum(dim=2).sqrt()
        return (1 - F.softmax(distances, dim=1)[:, 0]) * score.squeeze(1)  # s

    def _make_map(self, scores: torch.Tensor, size: torch.Size | tuple[int, int]) -> torch.Tensor:
        """Upsample scores of shape ``(batch, 1, grid_height, grid_width)`` to the image's size and smooth them."""
        # Only the kernel of Anomalib's generator is used. The generator upsamples with nearest neighbor, and smooths
        # rows and columns in one convolution, which takes ten times as long as one after the other
        kernel = next(self.anomaly_map_generator.buffers())[0, 0]  # the product of two vectors whose sums are 1
        # The types differ if the trainer's precision is "true"
        scores = F.interpolate(scores, size=size, mode=self.upsampling).to(kernel.dtype)
        radius = len(kernel) // 2
        padded = F.pad(scores, (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(padded, kernel.sum(dim=0).view(1, 1, 1, -1)), kernel.sum(dim=1).view(1, 1, -1, 1))
