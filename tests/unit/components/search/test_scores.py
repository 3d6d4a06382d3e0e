# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Scores against two memory banks: skipped comparisons must not change them."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from test_exact import RANGES, anisotropic, brute_force, make_radii
from torch import nn

from anomalib_softpatch.components import MemoryBank, nearest_neighbors
from anomalib_softpatch.components.search import scores as module
from anomalib_softpatch.components.search.bank import nearer
from anomalib_softpatch.components.search.scores import score_by_banks
from anomalib_softpatch.predictions.runtimes import openvino_core

TWO = (RANGES["two that share rows"][0], RANGES["two that share rows"][1])
SHAPE = (3, 9, 7)


@pytest.fixture(autouse=True)
def prune_small_parts(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_OWN_PART", 0)


def score(search, queries, weights, ranges, shape, smoothing=0.0):
    """Score by a search; only the weights and ranges of the bank count."""
    bank = MemoryBank(torch.empty(0), weights, None, tuple(ranges))
    return score_by_banks(search, queries, bank, shape, smoothing)


class PlainSearch:
    def __init__(self, bank, radii=None):
        self.bank = bank
        self.radii = radii

    def nearest(self, queries, part, known=None):
        radii = None if self.radii is None else self.radii[slice(*part)]
        distances, rows = nearest_neighbors(queries, self.bank[slice(*part)], radii=radii)
        return nearer(known, (distances.squeeze(1), rows.squeeze(1) + part[0]))


class Search(PlainSearch):
    """The plain search, which records its calls."""

    def __init__(self, bank, radii=None):
        super().__init__(bank, radii)
        self.searched = []

    def nearest(self, queries, part, known=None):
        self.searched.append((part, len(queries), known))
        return super().nearest(queries, part, known)

    def count(self, part):
        """Patches that were compared with a part."""
        return sum(count for other, count, _ in self.searched if other == part)


def expected_scores(queries, bank, weights, rows, shape, smoothing=0.0, radii=None):
    """Scores of all patches in float64, of shape (batch, height * width), smoothed by SciPy."""
    distances = brute_force(queries, bank[slice(*rows)], None if radii is None else radii[slice(*rows)])
    scores = distances.min(axis=1) * weights[slice(*rows)].double().numpy()[distances.argmin(axis=1)]
    return gaussian_filter(scores.reshape(shape), (0, smoothing, smoothing), mode="nearest", truncate=3).reshape(
        shape[0], -1
    )


def check(found, queries, bank, weights, ranges, shape, smoothing=0.0):
    scores, nearest, map_scores = map(np.asarray, found)
    expected = expected_scores(queries, bank, weights, ranges[0], shape, smoothing)
    np.testing.assert_allclose(scores.max(axis=1), expected.max(axis=1), rtol=1e-4)
    best = scores.argmax(axis=1)
    queries_of_best = np.arange(shape[0]) * shape[1] * shape[2] + best
    distances = brute_force(queries, bank)[queries_of_best, slice(*ranges[0])]
    np.testing.assert_array_equal(nearest[np.arange(shape[0]), best], distances.argmin(axis=1) + ranges[0][0])
    of_map = expected_scores(queries, bank, weights, ranges[1], shape)
    np.testing.assert_allclose(map_scores, of_map, rtol=1e-3, atol=1e-5)


def make_weights(rows, spread=1.0):
    return 1 + spread * torch.rand(rows, generator=torch.Generator().manual_seed(5))


def hard_and_easy(shape=SHAPE):
    """Images whose patches are all alike, and one with some that stand out."""
    queries = anisotropic(int(np.prod(shape)), seed=3).view(*shape, -1)
    queries[0, 2:4, 3:5] += 3 * anisotropic(1, seed=4)
    return queries.flatten(0, 2)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("ranges", [pair for pair in RANGES.values() if len(pair) == 2])
def test_scores(ranges, smoothing):
    queries, bank, weights = hard_and_easy(), anisotropic(3000, seed=1), make_weights(3000)
    found = score(Search(bank), queries, weights, ranges, SHAPE, smoothing)
    check(found, queries, bank, weights, ranges, SHAPE, smoothing)


@pytest.mark.parametrize("kind", ["some count", "larger than all distances"])
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("ranges", [pair for pair in RANGES.values() if len(pair) == 2])
def test_scores_with_radii(ranges, smoothing, kind):
    """Mutual reachability distances; rows that tie have the same weight here."""
    queries, bank, weights = hard_and_easy(), anisotropic(3000, seed=1), torch.full((3000,), 1.5)
    radii = make_radii(kind, queries, bank)
    found = score(Search(bank, radii), queries, weights, ranges, SHAPE, smoothing)
    scores, _, map_scores = map(np.asarray, found)
    expected = expected_scores(queries, bank, weights, ranges[0], SHAPE, smoothing, radii)
    np.testing.assert_allclose(scores.max(axis=1), expected.max(axis=1), rtol=1e-4)
    of_map = expected_scores(queries, bank, weights, ranges[1], SHAPE, radii=radii)
    np.testing.assert_allclose(map_scores, of_map, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_most_patches_are_not_compared(smoothing):
    """All are compared with the rows that the map needs, a few with the others, and none twice with a part."""
    shape = (2, 24, 20)
    queries, bank, weights = hard_and_easy(shape), anisotropic(3000, seed=1), make_weights(3000, 0.1)
    search = Search(bank)
    check(score(search, queries, weights, TWO, shape, smoothing), queries, bank, weights, TWO, shape, smoothing)
    own, shared, rest = (0, 900), (900, 2000), (2000, 3000)
    assert search.count(shared) == search.count(rest) == len(queries)
    assert 0 < search.count(own) < 0.4 * len(queries)
    # Distances to the shared rows limit the other searches
    assert [known is None for _, _, known in search.searched] == [True, False, False, False]


@pytest.mark.parametrize("smoothing", [0.0, 0.4, 1.0])
def test_any_scores(smoothing, monkeypatch):
    """Few patches are tried first, with loose or tight bounds: the result is as if all were compared."""
    monkeypatch.setattr(module, "TRIED_FIRST", 1)
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        shape = (2, 10 + seed % 5, 9)
        count = int(np.prod(shape))
        shared = 10 * torch.rand(count, generator=generator) ** 3
        nearer_ones = torch.rand(count, generator=generator) < 0.6
        own = torch.where(nearer_ones, shared * torch.rand(count, generator=generator), shared + 1)
        distances = torch.stack((own, shared, torch.rand(count, generator=generator)))
        weights = torch.tensor([1.0, 1 + 0.6 * float(torch.rand(1, generator=generator)), 1.0])

        def nearest(some, part, known, distances=distances):
            return nearer(known, (distances[part[0], some[:, 0]], torch.full((len(some),), part[0])))

        results = []
        for smallest in (0, 2**40):
            monkeypatch.setattr(module, "SMALLEST_OWN_PART", smallest)
            numbers = torch.arange(count)[:, None]
            results.append(
                score(SimpleNamespace(nearest=nearest), numbers, weights, ((0, 2), (1, 3)), shape, smoothing)
            )
        (scores, rows, map_scores), (expected, expected_nearest, expected_map) = results
        best = expected.argmax(dim=1, keepdim=True)
        assert torch.equal(scores.argmax(dim=1, keepdim=True), best)
        assert torch.equal(scores.gather(1, best), expected.gather(1, best))
        assert torch.equal(rows.gather(1, best), expected_nearest.gather(1, best))
        assert torch.equal(map_scores, expected_map)


def test_nothing_is_pruned_where_it_saves_no_time(monkeypatch):
    queries, bank, weights = hard_and_easy(), anisotropic(3000, seed=1), make_weights(3000)
    monkeypatch.setattr(module, "SMALLEST_OWN_PART", 900 * 64 + 1)
    search = Search(bank)
    scores, _, _ = score(search, queries, weights, TWO, SHAPE)
    assert [part for part, _, _ in search.searched] == [(900, 2000), (2000, 3000), (0, 900)]
    assert scores.isfinite().all()
    np.testing.assert_allclose(scores, expected_scores(queries, bank, weights, TWO[0], SHAPE), rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    cuts=st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(1, 20)),
    spread=st.sampled_from([0.0, 0.1, 5.0]),
    smoothing=st.sampled_from([0.0, 0.5, 1.0]),
    integers=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_banks(shape, cuts, spread, smoothing, integers, seed):
    """Small images, ties, rows at distance zero, very different weights, and banks that share no row."""
    generator = torch.Generator().manual_seed(seed)
    own, shared, rest = cuts
    queries = torch.randn(int(np.prod(shape)), 3, generator=generator)
    bank = torch.randn(own + shared + rest, 3, generator=generator)
    if integers:
        queries, bank = queries.round(), bank.round()
    weights = 1 + spread * torch.rand(len(bank), generator=generator)
    ranges = ((0, own + shared), (own, len(bank)))
    scores, _, map_scores = score(Search(bank), queries, weights, ranges, shape, smoothing)
    # Ties may go to either row, whose weights differ: compare with the search of all patches
    search = Search(bank)
    for pair, found in ((ranges[0], scores.amax(dim=1)), (ranges[1], map_scores)):
        distances, rows = search.nearest(queries, pair)
        expected = (distances * weights[rows]).view(shape)
        if pair == ranges[0]:
            expected = module.smooth(expected, smoothing).flatten(1).amax(dim=1)
        torch.testing.assert_close(found.view(expected.shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_weights_of_zero_without_known_rows(smoothing):
    """The rows that both banks share may all be left out, with infinite distances."""
    queries, bank = hard_and_easy(), anisotropic(3000, seed=1)
    plain = Search(bank)

    def nearest(some, part, known):
        if part == (900, 2000):
            return torch.full((len(some),), torch.inf), torch.full((len(some),), 900)
        return plain.nearest(some, part, known)

    search, weights = SimpleNamespace(nearest=nearest), make_weights(3000)
    scores, _, _ = score(search, queries, weights, TWO, SHAPE, smoothing)
    expected = expected_scores(queries, bank, weights, (0, 900), SHAPE, smoothing)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    scores, _, map_scores = score(search, queries, torch.zeros(3000), TWO, SHAPE, smoothing)
    assert (scores.amax(dim=1) == 0).all()
    assert (map_scores == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_nan_stays_nan_in_its_image(smoothing):
    queries, bank, weights = hard_and_easy(), anisotropic(3000, seed=1), make_weights(3000)
    queries[70, 5] = torch.nan  # in the second image
    scores, _, map_scores = score(Search(bank), queries, weights, TWO, SHAPE, smoothing)
    assert scores.amax(dim=1).isnan().tolist() == [False, True, False]
    assert map_scores.isnan().nonzero().tolist() == [[1, 7]]
    expected = expected_scores(queries, bank, weights, TWO[0], SHAPE, smoothing)
    np.testing.assert_allclose(scores.amax(dim=1)[[0, 2]], expected.max(axis=1)[[0, 2]], rtol=1e-4)


class Model(nn.Module):
    """Scores against two banks, as in the models."""

    def __init__(self, bank, weights):
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("weights", weights)

    def forward(self, images):
        batch, channels, height, width = images.shape
        queries = images.permute(0, 2, 3, 1).reshape(-1, channels)
        return score(PlainSearch(self.bank), queries, self.weights, TWO, (batch, height, width), 1.0)


def test_export(tmp_path):
    """Any number of images of any size, easy and hard ones in turn, in both runtimes."""
    bank, weights = anisotropic(3000, 32), make_weights(3000, 0.1)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    path, model = tmp_path / "model.onnx", Model(bank, weights)
    torch.onnx.export(model, (torch.zeros(2, 32, 5, 6),), path, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = onnxruntime.InferenceSession(path)
    compiled = openvino_core().compile_model(openvino.convert_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for number, shape in enumerate([(1, 20, 24), (3, 9, 7), (1, 4, 4), (2, 24, 22), (1, 1, 1)]):
        queries = anisotropic(int(np.prod(shape)), 32, seed=number + 2)
        queries[len(queries) // 2] *= 1 + 3 * (number % 2)
        images = queries.view(*shape, 32).permute(0, 3, 1, 2).contiguous().numpy()
        found = session.run(None, {session.get_inputs()[0].name: images})
        check(found, queries, bank, weights, TWO, shape, 1.0)
        check([output.copy() for output in compiled(images).values()], queries, bank, weights, TWO, shape, 1.0)
