# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The exact search, plain and pruned, against NumPy in float64, eager and exported."""

import threading
from dataclasses import replace

import numpy as np
import onnxruntime
import openvino
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anomalib_softpatch.components import MemoryBank, NearestNeighborSearch, nearest_neighbors
from anomalib_softpatch.components.search import bounds, exact, plain
from anomalib_softpatch.components.search.exact import PrunedIndex
from anomalib_softpatch.predictions.runtimes import openvino_core

RANGES = {
    "one": [(0, 3000)],
    "two that share rows": [(0, 2000), (900, 3000)],
    "nested": [(0, 3000), (700, 703)],
    "nested, from the same row": [(0, 3000), (0, 2200)],
    "nested, the larger one last": [(0, 2200), (0, 3000)],
    "apart": [(0, 1300), (1300, 3000)],
    "the same": [(0, 3000), (0, 3000)],
}


def anisotropic(rows, columns=64, seed=0, offset=0.0):
    """Rows whose variance decreases along the axes like that of image features."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0, 3, columns).neg().exp() ** 3
    rotation = torch.linalg.qr(torch.randn(columns, columns, generator=torch.Generator().manual_seed(9))).Q
    return (torch.randn(rows, columns, generator=generator) * scales) @ rotation + offset


def brute_force(queries, bank, radii=None):
    """Distances of all pairs in float64, mutual reachability distances where rows have radii."""
    queries, bank = queries.double().numpy(), bank.double().numpy()
    distances = np.stack([np.sqrt(((bank - query) ** 2).sum(axis=1)) for query in queries])
    return distances if radii is None else np.maximum(distances, radii.double().numpy())


def check(queries, bank, k, distances, indices, tolerance=1e-5, radii=None):
    """Distances are the k smallest, and match the indices, which are all different."""
    expected = brute_force(queries, bank, radii)
    smallest = np.sort(expected, axis=1)[:, :k]
    scale = tolerance * max(1e-30, expected.max())
    np.testing.assert_allclose(distances, smallest, rtol=tolerance, atol=scale)
    np.testing.assert_allclose(np.take_along_axis(expected, indices.numpy(), axis=1), smallest, rtol=1e-5, atol=scale)
    assert all(len(set(row)) == k for row in indices.tolist())


def check_nearest(queries, bank, found, tolerance=1e-5, radii=None):
    """The same for one neighbor of each query."""
    distances, indices = found
    check(queries, bank, 1, distances[:, None], indices[:, None], tolerance, radii)


def search_of(bank, radii=None, search=NearestNeighborSearch):
    return search(MemoryBank(bank, torch.ones(len(bank)), radii, ((0, len(bank)),)))


def find(queries, bank, radii=None, known=None, left_out=None, search=NearestNeighborSearch):
    """Search a whole bank."""
    whole = search_of(bank, radii, search)
    whole = whole if left_out is None else whole.without(left_out)
    return whole.nearest(queries, (0, len(bank)), known)


def make_radii(kind, queries, bank):
    """Radii of which about half, all or none count, or that tie."""
    typical = float(brute_force(queries, bank).min(axis=1).mean())
    random = torch.rand(len(bank), generator=torch.Generator().manual_seed(7)).to(bank.dtype)
    return {
        "some count": 2 * typical * random,
        "larger than all distances": 1000 * typical * (1 + random),
        "smaller than all distances": 1e-6 * typical * random,
        "ties": typical * (3 * random).floor(),
        "all the same": torch.full_like(random, 1.5 * typical),
    }[kind]


RADII = ("some count", "larger than all distances", "smaller than all distances", "ties", "all the same")


def refuse(*_, **__):
    pytest.fail("The plain search was asked.")


@pytest.fixture
def small_index(monkeypatch):
    """Use an index for every bank, however small, and however little the index may rule out."""
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0)
    monkeypatch.setattr(bounds, "LARGEST_REST", float("inf"))


@pytest.mark.parametrize("k", [1, 5, 700])
@pytest.mark.parametrize("block", [64, 4096])
def test_plain_search(k, block, monkeypatch):
    monkeypatch.setattr(plain, "BANK_BLOCK", block)
    queries, bank = anisotropic(50), anisotropic(700, seed=1)
    check(queries, bank, k, *nearest_neighbors(queries, bank, k))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("block", [64, 4096])
def test_part_of_a_bank(k, block, monkeypatch):
    monkeypatch.setattr(plain, "BANK_BLOCK", block)
    queries, bank = anisotropic(50), anisotropic(700, seed=1)
    distances, indices = nearest_neighbors(queries, bank, k, within=(130, 333))
    check(queries, bank[130:333], k, distances, indices - 130)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pruned_search(dtype, small_index, monkeypatch):
    """Also in small blocks."""
    monkeypatch.setattr(exact, "BOUND_BLOCK", 3000 * 30)
    monkeypatch.setattr(exact, "DIFFERENCE_BLOCK", 64 * 100)
    queries, bank = anisotropic(100).to(dtype), anisotropic(3000, seed=1).to(dtype)
    index = PrunedIndex(bank)
    assert index.points.shape[1] < 24
    check_nearest(queries, bank, index.nearest(queries))
    check_nearest(queries, bank, find(queries, bank))


def test_prunes(small_index, monkeypatch):
    """The plain search is the last resort for hard queries, and these are not hard."""
    queries, bank = anisotropic(100), anisotropic(20_000, seed=1)
    index = PrunedIndex(bank)
    expected = nearest_neighbors(queries, bank)
    monkeypatch.setattr(exact, "nearest_row", refuse)
    distances, indices = index.nearest(queries)
    assert torch.equal(indices[:, None], expected[1])
    assert torch.equal(distances[:, None], expected[0])


def test_one_row_far_away_costs_nothing(small_index, monkeypatch):
    """Allowances for rounding depend only on the rows that matter."""
    queries, bank = anisotropic(100), anisotropic(20_000, seed=1)
    bank[17] *= 100
    index = PrunedIndex(bank)
    monkeypatch.setattr(exact, "nearest_row", refuse)
    check_nearest(queries, bank, index.nearest(queries))


def test_far_from_the_origin(small_index):
    """The index centers the bank, so that expanded distances keep their digits (the plain search does not)."""
    queries, bank = anisotropic(100, offset=1000), anisotropic(20_000, seed=1, offset=1000)
    check_nearest(queries, bank, find(queries, bank))


def test_duplicates(small_index):
    """Rows of the bank are found at distance zero, the first of equal ones."""
    bank = anisotropic(500).repeat(4, 1)
    distances, indices = find(bank[:500], bank)
    assert (distances == 0).all()
    assert torch.equal(indices, torch.arange(500))


def test_queries_far_from_the_bank(small_index):
    """There, bounds rule out few rows, and the plain search takes over."""
    queries = torch.cat((anisotropic(20), 100 * torch.randn(20, 64, generator=torch.Generator().manual_seed(0))))
    bank = anisotropic(3000, seed=1)
    check_nearest(queries, bank, find(queries, bank))


@pytest.mark.parametrize("index", ["pruned", "none"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_rows_left_out(index, share, small_index, monkeypatch):
    """Rows of which the queries are copies, and others."""
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0 if index == "pruned" else float("inf"))
    bank = anisotropic(3000, seed=1)
    left_out = torch.rand(3000, generator=torch.Generator().manual_seed(2)) < share
    queries = torch.cat((bank[left_out][:40], anisotropic(40)))
    distances, indices = find(queries, bank, left_out=left_out)
    expected = brute_force(queries, bank)
    expected[:, left_out.numpy()] = np.inf
    np.testing.assert_array_equal(indices, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-5, atol=1e-6)


def test_all_rows_left_out():
    bank = anisotropic(3000)
    distances, indices = find(bank[:2], bank, left_out=torch.ones(3000, dtype=torch.bool))
    assert distances.tolist() == [float("inf")] * 2
    assert indices.tolist() == [0, 0]


def test_limits(small_index):
    """Rows nearer than the limit are found; otherwise any row is returned without a long search."""
    queries, bank = anisotropic(200), anisotropic(3000, seed=1)
    expected = brute_force(queries, bank)
    nearest = torch.from_numpy(expected.min(axis=1)).float()
    factors = torch.tensor([0.5, 1.0, 1.001, 2.0]).repeat(50)
    limits = nearest * factors
    limits[7] = torch.nan  # like no limit
    distances, indices = PrunedIndex(bank).nearest(queries, limits=limits)
    np.testing.assert_allclose(distances, expected[np.arange(200), indices.numpy()], rtol=1e-4)
    np.testing.assert_allclose(distances[factors >= 1], nearest[factors >= 1], rtol=1e-4)
    assert (distances[factors < 1] > limits[factors < 1]).all()
    assert (distances[factors < 1] > 1.001 * nearest[factors < 1]).any()


@pytest.mark.parametrize("index", ["pruned", "none"])
def test_what_is_known_stays_where_it_is_nearer(index, small_index, monkeypatch):
    """Rows of a part have their numbers in the bank."""
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0 if index == "pruned" else float("inf"))
    queries, bank = anisotropic(200), anisotropic(3000, seed=1)
    search = search_of(bank)
    distances, rows = search.nearest(queries, (1200, 3000), search.nearest(queries, (0, 1200)))
    expected = brute_force(queries, bank)
    np.testing.assert_array_equal(rows, expected.argmin(axis=1))
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-5)
    assert {part: type(each) for part, each in search.indexes.items()} == (
        {(0, 1200): PrunedIndex, (1200, 3000): PrunedIndex} if index == "pruned" else {}
    )


@pytest.mark.parametrize(
    "bank",
    [torch.ones(300, 8), torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), torch.randn(1, 8)],
    ids=["constant", "isotropic", "one row"],
)
def test_no_leading_axes(bank, small_index):
    assert PrunedIndex(bank).points is None
    queries = anisotropic(10, 8)
    check_nearest(queries, bank, find(queries, bank))


@pytest.mark.parametrize("k", [1, 3])
def test_autocast(k, small_index):
    """Neighbors and distances keep full precision if the backbone runs in a lower one."""
    queries, bank = anisotropic(300), anisotropic(3000, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shorter = nearest_neighbors(queries, bank, k), find(queries, bank)
    for found, expected in zip(shorter, (nearest_neighbors(queries, bank, k), find(queries, bank)), strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_nan_stays_nan(small_index):
    queries = anisotropic(10)
    queries[3, 5] = torch.nan
    distances, _ = find(queries, anisotropic(3000, seed=1))
    assert distances.isnan().tolist() == [row == 3 for row in range(10)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(64, 400),
    columns=st.integers(6, 40),
    decay=st.floats(0.0, 8),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    offset=st.sampled_from([0.0, 10.0]),
    integers=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_bank(rows, columns, decay, scale, offset, integers, seed):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0, -decay, columns).exp()
    values = torch.randn(rows + 20, columns, generator=generator) * scales + offset
    values = scale * (values.mul(4).round() if integers else values)
    queries, bank = values[:20], values[20:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "EXPLAINED_VARIANCE", 0.01)
        patch.setattr(bounds, "LARGEST_REST", float("inf"))
        index = PrunedIndex(bank)
    check_nearest(queries, bank, index.nearest(queries), tolerance=1e-4)


def test_parts_are_indexed_once(monkeypatch):
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 64_000)
    queries, search = anisotropic(10), search_of(anisotropic(2000, seed=1))
    search.nearest(queries, (0, 1000))
    search.nearest(queries, (1000, 2000))
    first = dict(search.indexes)
    assert len(first) == 2
    search.nearest(queries, (0, 1000))
    search.without(torch.arange(2000) < 500).nearest(queries, (1000, 2000))
    search.nearest(queries, (0, 3))  # too few rows for an index
    assert search.indexes == first


@pytest.mark.parametrize("inference", [False, True])
def test_search_is_of_one_bank(inference):
    """Other features or radii, or the same ones after a change, are another bank; weights do not count."""
    with torch.inference_mode(inference):
        features, radii = anisotropic(20).clone(), torch.ones(20)
        bank = MemoryBank(features, torch.ones(20), radii, ((0, 20),))
        search, plain_search = NearestNeighborSearch(bank), NearestNeighborSearch(replace(bank, radii=None))
    assert search.is_of(replace(bank, weights=torch.zeros(20)))
    assert not search.is_of(replace(bank, features=features.clone()))
    assert not search.is_of(replace(bank, features=features[:10]))
    assert not search.is_of(replace(bank, radii=radii.clone()))
    assert not search.is_of(replace(bank, radii=None))
    assert not plain_search.is_of(bank)
    if not inference:  # whose tensors do not count changes
        radii *= 2
        assert not search.is_of(bank)
        assert plain_search.is_of(replace(bank, radii=None))
        features += 1
        assert not plain_search.is_of(replace(bank, radii=None))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("kind", RADII)
@pytest.mark.parametrize("block", [64, 4096])
def test_radii_in_the_plain_search(kind, k, block, monkeypatch):
    """The smallest mutual reachability distances, also in a part of the bank and with rows that do not count."""
    monkeypatch.setattr(plain, "BANK_BLOCK", block)
    monkeypatch.setattr(plain, "QUERY_BLOCK", 30)
    queries, bank = anisotropic(50), anisotropic(700, seed=1)
    radii = make_radii(kind, queries, bank)
    check(queries, bank, k, *nearest_neighbors(queries, bank, k, radii=radii), radii=radii)
    distances, indices = nearest_neighbors(queries, bank, k, within=(130, 333), radii=radii)
    check(queries, bank[130:333], k, distances, indices - 130, radii=radii[130:333])
    norms = bank.square().sum(dim=1)
    norms[300:] = torch.inf
    check(queries, bank[:300], k, *nearest_neighbors(queries, bank, k, norms=norms, radii=radii), radii=radii[:300])


@pytest.mark.parametrize("kind", RADII)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radii_in_the_pruned_search(kind, dtype, small_index, monkeypatch):
    monkeypatch.setattr(exact, "BOUND_BLOCK", 3000 * 30)
    monkeypatch.setattr(exact, "DIFFERENCE_BLOCK", 64 * 100)
    queries, bank = anisotropic(100).to(dtype), anisotropic(3000, seed=1).to(dtype)
    radii = make_radii(kind, queries, bank)
    index = PrunedIndex(bank, radii)
    assert index.points is not None
    check_nearest(queries, bank, index.nearest(queries), radii=radii)
    check_nearest(queries, bank, find(queries, bank, radii), radii=radii)


def test_radii_do_not_hinder_pruning(small_index, monkeypatch):
    """Half of the rows have radii that count."""
    queries, bank = anisotropic(100), anisotropic(20_000, seed=1)
    radii = make_radii("some count", queries, bank)
    index = PrunedIndex(bank, radii)
    monkeypatch.setattr(exact, "nearest_row", refuse)
    check_nearest(queries, bank, index.nearest(queries), radii=radii)


def test_radii_of_copies(small_index):
    """The distance of a copy to its row is the radius of the row: if it is large, another row is nearer."""
    bank = anisotropic(3000, seed=1)
    radii = torch.zeros(3000)
    radii[:50], radii[50:100] = 1e-3, 1e3
    plainly = tuple(each.squeeze(1) for each in nearest_neighbors(bank[:100], bank, radii=radii))
    for found in (plainly, PrunedIndex(bank, radii).nearest(bank[:100])):
        check_nearest(bank[:100], bank, found, radii=radii)
        assert torch.equal(found[1][:50], torch.arange(50))
        torch.testing.assert_close(found[0][:50], radii[:50])
        assert not ((found[1][50:] >= 50) & (found[1][50:] < 100)).any()


@pytest.mark.parametrize("k", [1, 5])
def test_zero_radii_are_none(k, small_index):
    """Bit by bit."""
    queries, bank = anisotropic(100), anisotropic(3000, seed=1)
    zeros = torch.zeros(3000)
    for search in (
        lambda radii: nearest_neighbors(queries, bank, k, radii=radii),
        lambda radii: find(queries, bank, radii),
    ):
        for found, expected in zip(search(zeros), search(None), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("index", ["pruned", "none"])
@pytest.mark.parametrize("kind", RADII)
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_radii_and_rows_left_out(index, kind, share, small_index, monkeypatch):
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0 if index == "pruned" else float("inf"))
    bank = anisotropic(3000, seed=1)
    left_out = torch.rand(3000, generator=torch.Generator().manual_seed(2)) < share
    queries = torch.cat((bank[left_out][:40], anisotropic(40)))
    radii = make_radii(kind, queries[40:], bank)
    distances, indices = find(queries, bank, radii, left_out=left_out)
    expected = brute_force(queries, bank, radii)
    expected[:, left_out.numpy()] = np.inf
    assert not left_out[indices].any()
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(expected[np.arange(80), indices], expected.min(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", RADII)
def test_radii_and_limits(kind, small_index):
    queries, bank = anisotropic(200), anisotropic(3000, seed=1)
    radii = make_radii(kind, queries, bank)
    expected = brute_force(queries, bank, radii)
    nearest = torch.from_numpy(expected.min(axis=1)).float()
    factors = torch.tensor([0.5, 1.001, 2.0, 1.5]).repeat(50)
    distances, indices = PrunedIndex(bank, radii).nearest(queries, limits=nearest * factors)
    np.testing.assert_allclose(distances, expected[np.arange(200), indices.numpy()], rtol=1e-4)
    np.testing.assert_allclose(distances[factors >= 1], nearest[factors >= 1], rtol=1e-4)
    assert (distances[factors < 1] >= nearest[factors < 1] * (1 - 1e-4)).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(64, 300),
    columns=st.integers(6, 30),
    decay=st.floats(0.0, 8),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    size=st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e4]),
    k=st.integers(1, 8),
    integers=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_radii(rows, columns, decay, scale, size, k, integers, seed):
    """Copies of rows among the queries, ties of distances and radii, radii of any size."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows + 20, columns, generator=generator) * torch.linspace(0, -decay, columns).exp()
    radii = size * torch.rand(rows, generator=generator)
    if integers:
        values, radii = values.mul(4).round(), radii.mul(4).round()
    queries, bank, radii = scale * values[:25], scale * values[20:], scale * radii
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "EXPLAINED_VARIANCE", 0.01)
        patch.setattr(bounds, "LARGEST_REST", float("inf"))
        index = PrunedIndex(bank, radii)
    check_nearest(queries, bank, index.nearest(queries), tolerance=2e-4, radii=radii)
    check(queries, bank, k, *nearest_neighbors(queries, bank, k, radii=radii), tolerance=2e-4, radii=radii)


class Model(nn.Module):
    """A search of a bank in a buffer, as in the models."""

    def __init__(self, bank, k, radii=None):
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("radii", radii)
        self.k = k

    def forward(self, images):
        queries = images.flatten(2).mT.reshape(-1, images.shape[1])
        if self.k > 1:
            radii = None if self.radii is None else self.radii[10:]
            return nearest_neighbors(queries, self.bank[10:], self.k, radii=radii)
        distances, rows = search_of(self.bank, self.radii).nearest(queries, (10, len(self.bank)))
        return distances[:, None], rows[:, None] - 10


def export(model, example, folder):
    """Export for any number, height and width of images; return functions that search, in both runtimes."""
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    path = folder / "model.onnx"
    torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    openvino.save_model(openvino.convert_model(path), folder / "model.xml", compress_to_fp16=False)
    assert path.stat().st_size < 1.2 * model.bank.numel() * 4 + 50_000
    session = onnxruntime.InferenceSession(path)
    compiled = openvino_core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return (
        lambda images: session.run(None, {session.get_inputs()[0].name: images.numpy()}),
        lambda images: [output.copy() for output in compiled(images.numpy()).values()],
    )


def check_sizes(searches, model, radii=None):
    """Batches of several sizes."""
    for shape in ((1, 4, 6), (4, 4, 6), (2, 7, 3)):
        queries = anisotropic(int(np.prod(shape)), 16, seed=2)
        images = queries.view(shape[0], -1, 16).mT.reshape(shape[0], 16, *shape[1:]).contiguous()
        for search in searches:
            check(queries, model.bank[10:], model.k, *map(torch.as_tensor, search(images)), radii=radii)


def test_exported_with_more_neighbors(small_index, tmp_path, monkeypatch):
    """The graph contains the plain operations, and takes any batch size, height and width."""
    monkeypatch.setattr(plain, "BANK_BLOCK", 1024)
    monkeypatch.setattr(PrunedIndex, "nearest", None)
    bank = anisotropic(3010, 16)
    radii = make_radii("some count", anisotropic(50, 16, seed=2), bank)
    model = Model(bank, 3, radii).eval()
    image = anisotropic(4 * 6, 16, seed=1).T.reshape(1, 16, 4, 6)
    traced = torch.jit.trace(model, (image,), check_trace=False)
    check_sizes((*export(model, image, tmp_path), traced), model, radii[10:])


class LargestTensor(TorchDispatchMode):
    """Record the largest tensor that any operation returns, in elements; views of the bank do not count."""

    def __init__(self, bank):
        super().__init__()
        self.bank = bank.untyped_storage().data_ptr()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() != self.bank:
                # An expanded tensor is as large as its storage
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@pytest.mark.parametrize("kind", ["pruned", "hard queries", "plain", "plain, 3 neighbors"])
def test_memory_is_bounded(kind, small_index, monkeypatch):
    """No tensor is larger than a block, although the distances of all pairs would be 90 times as large."""
    monkeypatch.setattr(plain, "BANK_BLOCK", 512)
    monkeypatch.setattr(plain, "QUERY_BLOCK", 512)
    monkeypatch.setattr(exact, "BOUND_BLOCK", 512 * 512)
    monkeypatch.setattr(exact, "DIFFERENCE_BLOCK", 512 * 512)
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 2**40 if "plain" in kind else 0)
    bank, queries = anisotropic(6000, 32), anisotropic(4000, 32, seed=1)
    if kind == "hard queries":
        queries = queries + 100
    whole = search_of(bank)
    whole.nearest(queries[:1], (0, 6000))  # builds the index
    assert [index.points is not None for index in whole.indexes.values()] == [True] * ("plain" not in kind)
    k = 3 if "3" in kind else 1
    with LargestTensor(bank) as largest:
        found = nearest_neighbors(queries, bank, k) if k > 1 else whole.nearest(queries, (0, 6000))
    # Room for tensors as large as the queries, and for pairs in doubt: row and column numbers, one per strip
    assert 512 * 32 < largest.elements <= 512 * 512
    distances, indices = (each.view(4000, k)[::40] for each in found)
    check(queries[::40], bank, k, distances, indices, tolerance=1e-4)


class PeakMemory(threading.Thread):
    """Largest growth of the resident memory of this process while a block runs, in bytes."""

    def __enter__(self):
        self.process, self.ended, self.peak = psutil.Process(), threading.Event(), 0
        self.before = self.process.memory_info().rss
        self.start()
        return self

    def run(self):
        while not self.ended.wait(0.001):
            self.peak = max(self.peak, self.process.memory_info().rss - self.before)

    def __exit__(self, *_):
        self.ended.set()
        self.join()


def test_exported(small_index, tmp_path, monkeypatch):
    """The graph has the plain operations, and takes any batch size, height and width.

    Runtimes take one block of the bank after the other, and do not store the blocks in addition to the bank.
    """
    monkeypatch.setattr(plain, "BANK_BLOCK", 512)
    monkeypatch.setattr(PrunedIndex, "nearest", None)
    bank = anisotropic(8 * 512 + 10, 16)
    radii = make_radii("ties", anisotropic(50, 16, seed=2), bank)
    model = Model(bank, 1, radii).eval()
    searches = export(model, torch.zeros(2, 16, 3, 3), tmp_path)
    assert (tmp_path / "model.bin").stat().st_size < 1.3 * bank.numel() * 4 + 50_000
    traced = torch.jit.trace(model, (torch.zeros(2, 16, 3, 3),), check_trace=False)
    check_sizes((*searches, traced), model, radii[10:])
    queries = anisotropic(128 * 128, 16, seed=1)
    images = queries.T.reshape(1, 16, 128, 128).contiguous()
    block = len(queries) * 512 * 4
    for search in searches:
        search(images[:, :, :2].contiguous())
        with PeakMemory(daemon=True) as memory:
            distances, indices = search(images)
        # Measured 3.3 and 8.3 blocks of distances; 16 and more where the bank is not cut into blocks
        assert memory.peak < 11 * block
        found = torch.tensor(distances[::160]), torch.tensor(indices[::160])
        check(queries[::160], bank[10:], 1, *found, radii=radii[10:])
