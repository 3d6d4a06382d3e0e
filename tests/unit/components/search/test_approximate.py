# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The approximate search against NumPy in float64."""

import re

import numpy as np
import pytest
import torch
from test_exact import anisotropic, brute_force, make_radii, search_of
from test_exact import find as find_by

from anomalib_softpatch.components.search import approximate as module
from anomalib_softpatch.components.search import exact
from anomalib_softpatch.components.search.approximate import ApproximateIndex, ApproximateSearch, check_search
from anomalib_softpatch.components.search.exact import PrunedIndex
from samples import mixture


def check(queries, bank, k, distances, indices, recall=0.9, tolerance=1e-5, radii=None):
    """Distances are in order and those to the returned rows; most rows are the nearest, and none is repeated."""
    expected = brute_force(queries, bank, radii)
    scale = tolerance * max(1e-30, expected.max())
    own = np.take_along_axis(expected, indices.numpy(), axis=1)
    np.testing.assert_allclose(distances, own, rtol=tolerance, atol=scale)
    assert bool((distances.diff(dim=1) >= -scale).all())
    assert all(len(set(row)) == k for row in indices.tolist())
    farthest = np.sort(expected, axis=1)[:, k - 1 : k]
    assert (own <= farthest + scale).mean() >= recall


def find(queries, bank, radii=None, **options):
    """Search a whole bank; return one neighbor of each query."""
    distances, indices = find_by(queries, bank, radii, search=ApproximateSearch, **options)
    return distances[:, None], indices[:, None]


def index_of(bank, radii=None):
    """The index that a search makes."""
    return search_of(bank, radii, ApproximateSearch)._index((0, len(bank)), bank, radii)


@pytest.fixture
def small_index(monkeypatch):
    """Use an approximate index from 256 rows on."""
    monkeypatch.setattr(module, "SMALLEST_BANK", 256)
    monkeypatch.setattr(exact, "SMALLEST_INDEX", 0)


@pytest.fixture(scope="module")
def wide():
    """A large bank of wide rows, and its index."""
    bank = anisotropic(10_000, 256, seed=1)
    return bank, index_of(bank)


@pytest.mark.parametrize("k", [1, 32])
def test_large_bank(k, small_index):
    queries, bank = anisotropic(300, 16).double(), anisotropic(10_000, 16, seed=1).double()
    index = index_of(bank)
    assert type(index) is ApproximateIndex
    distances, indices = index.search(queries, k)
    assert distances.dtype == torch.float64
    check(queries, bank, k, distances, indices, recall=0.99)


@pytest.mark.parametrize(("k", "recall"), [(1, 0.9), (4, 0.85)])
def test_wide_rows(k, recall, wide):
    """Random numbers are harder than features of images: some rows are missed."""
    (bank, index), queries = wide, anisotropic(150, 256)
    assert type(index) is ApproximateIndex
    distances, indices = index.search(queries, k)
    assert distances.dtype == torch.float32
    check(queries, bank, k, distances, indices, recall)


@pytest.mark.parametrize(("kind", "k", "recall"), [("smaller than all distances", 3, 0.97), ("all the same", 1, 0.97)])
def test_radii(kind, k, recall, small_index):
    """Distances are mutual reachability distances."""
    queries, bank = anisotropic(300, 16), anisotropic(10_000, 16, seed=1)
    radii = make_radii(kind, queries, bank)
    index = index_of(bank, radii)
    assert type(index) is ApproximateIndex
    check(queries, bank, k, *index.search(queries, k), recall, radii=radii)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_radii_of_about_the_distances(size, small_index):
    """As a fit makes them: the found rows are as near as in an exact search, or a few percent farther."""
    queries, bank = anisotropic(300, 16), anisotropic(10_000, 16, seed=1)
    random = torch.rand(10_000, generator=torch.Generator().manual_seed(3))
    radii = size * torch.from_numpy(brute_force(bank[:500], bank[500:]).min(axis=1)).float().mean() * (0.5 + random)
    distances, indices = find(queries, bank, radii)
    expected = brute_force(queries, bank, radii)
    np.testing.assert_allclose(distances[:, 0], expected[np.arange(300), indices[:, 0]], rtol=1e-5)
    assert (distances[:, 0].numpy() / expected.min(axis=1)).mean() < 1.05


def test_radii_of_a_bank_that_does_not_suit_faiss(small_index):
    """Most rows have large radii, so candidates by distance alone are the wrong ones: the search is exact instead."""
    queries, bank = anisotropic(100, 16), anisotropic(10_000, 16, seed=1)
    radii = torch.full((10_000,), 1e3)
    radii[::100] = 0
    assert type(index_of(bank, radii)) is PrunedIndex
    check(queries, bank, 1, *find(queries, bank, radii), recall=1, radii=radii)


@pytest.mark.parametrize("kind", ["some count", "all the same"])
def test_radii_and_rows_left_out(kind, small_index):
    bank = anisotropic(3000, 16)
    left_out = torch.rand(3000, generator=torch.Generator().manual_seed(2)) < 0.5
    queries = torch.cat((bank[left_out][:40], anisotropic(40, 16, seed=1)))
    radii = make_radii(kind, queries[40:], bank)
    distances, indices = (each[:, 0] for each in find(queries, bank, radii, left_out=left_out))
    assert not left_out[indices].any()
    expected = brute_force(queries, bank, radii)
    np.testing.assert_allclose(distances, expected[np.arange(80), indices], rtol=1e-5, atol=1e-6)
    expected[:, left_out.numpy()] = np.inf
    assert (distances.numpy() / expected.min(axis=1)).mean() < 1.02


def test_rows_are_reduced_where_that_is_useful():
    assert ApproximateIndex(anisotropic(2000, 256)).index.d == module.LENGTH
    assert ApproximateIndex(anisotropic(2000, 64)).index.d == 64
    spread = torch.randn(2000, 1024)  # no few axes explain most of the variance
    index = ApproximateIndex(spread)
    assert index.index.d == 1024
    check(spread[:20], spread, 1, *index.search(spread[:20]), recall=1)


def test_variance_along_few_axes():
    """As with features of untrained networks: all codes must distinguish rows, not only those of the first axes."""
    scales = 0.5 ** torch.arange(256)
    rows = (torch.randn(10_150, 256, generator=torch.Generator().manual_seed(0)) * scales).split((150, 10_000))
    check(*rows, 1, *ApproximateIndex(rows[1]).search(rows[0]), recall=0.99)


def test_banks_that_do_not_suit_faiss_are_searched_exactly(small_index, caplog):
    """A few rows are so far away that all codes are spent on them."""
    queries, bank = anisotropic(100, 16) ** 3, anisotropic(10_000, 16, seed=1) ** 3
    distances, _ = ApproximateIndex(bank).search(queries)
    expected = brute_force(queries, bank)
    assert (distances[:, 0].numpy() / expected.min(axis=1)).mean() > 2  # otherwise the test checks nothing
    check(queries, bank, 1, *find(queries, bank), recall=1)
    assert type(index_of(bank)) is PrunedIndex
    assert re.search(r"searched exactly: faiss would find rows that are \d{3} % farther", caplog.text)


def test_excess_equals_numpy():
    bank = anisotropic(2000, 32)
    index = ApproximateIndex(bank)
    index.index.k_factor = 1  # misses more
    queries = bank[::7]
    nearest = np.sort(brute_force(queries, bank), axis=1)[:, 1]
    found = index.search(queries, 2)[0][:, 1].numpy()
    assert index.excess() == pytest.approx((found / nearest).mean() - 1, abs=1e-6)
    assert index.excess() > 0
    assert ApproximateIndex(torch.ones(500, 8)).excess() == 0  # all rows are equal


def test_queries_far_from_the_bank(wide):
    """As those of defects are: the found rows are not always the nearest, but hardly farther."""
    (bank, index), queries = wide, anisotropic(100, 256) * 4 + 2
    distances, indices = index.search(queries)
    check(queries, bank, 1, distances, indices, recall=0.7)
    assert (distances[:, 0].numpy() / brute_force(queries, bank).min(axis=1)).max() < 1.05


@pytest.mark.parametrize("rows", [1, 9, 255, 256, 400])
@pytest.mark.parametrize("columns", [1, 7])
def test_tiny_banks(rows, columns, small_index):
    queries, bank = mixture(20, columns), mixture(rows, columns, seed=1)
    check(queries, bank, 1, *find(queries, bank), recall=0.9)
    index = index_of(bank)
    assert type(index) is (ApproximateIndex if rows >= 256 else PrunedIndex)
    for k in (5, rows) if rows >= 256 else ():
        check(queries, bank, k, *index.search(queries, k), recall=0.9)


def test_duplicates(small_index):
    """Of equal rows, each is returned once, the first of them first. A bank of many equal rows is not an error."""
    bank = mixture(100, 8).repeat_interleave(5, dim=0)
    distances, indices = index_of(bank).search(bank, 5)
    assert bool((distances == 0).all())
    assert indices.tolist() == [[5 * (row // 5) + place for place in range(5)] for row in range(500)]
    same = torch.ones(1000, 8)
    distances, indices = index_of(same).search(same[:3] + 1, 2)
    np.testing.assert_allclose(distances, 8**0.5, rtol=1e-6)


def test_small_banks_are_searched_exactly():
    queries, bank = anisotropic(50, 512), anisotropic(3000, 512, seed=1)
    assert type(index_of(bank)) is PrunedIndex
    check(queries, bank, 1, *find(queries, bank), recall=1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stays_nan(value, small_index):
    queries, bank = mixture(40, 8), mixture(500, 8, seed=1)
    queries[7] = value
    distances, indices = find(queries, bank)
    assert not distances[7].isfinite()
    rest = torch.arange(40) != 7
    check(queries[rest], bank, 1, distances[rest], indices[rest])
    bank[7] = value
    assert not find(bank, bank)[0][7].isfinite()


def test_equal_banks_give_equal_results(wide):
    """With any number of threads, whatever other random numbers were drawn."""
    (bank, index), queries = wide, anisotropic(300, 256)
    first = index.search(queries, 3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        second = index_of(bank.clone()).search(queries, 3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first[1], second[1])


def test_threads_are_those_of_torch(monkeypatch):
    """During a search; afterward faiss has as many as before, for its other users."""
    faiss = pytest.importorskip("faiss")
    used = []
    index = ApproximateIndex(anisotropic(500, 16))
    search = index.index.search
    monkeypatch.setattr(index.index, "search", lambda *a: (used.append(faiss.omp_get_max_threads()), search(*a))[1])
    faiss.omp_set_num_threads(3)
    index.search(anisotropic(5, 16))
    assert used == [torch.get_num_threads()]
    assert faiss.omp_get_max_threads() == 3


def test_autocast(small_index):
    queries, bank = anisotropic(50, 256), anisotropic(2000, 256, seed=1)
    expected = find(queries, bank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances, indices = find(queries, bank)
    assert torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0])


def test_out_of_bag_needs_no_index_for_an_image(small_index):
    """If the nearest rows are all left out, more are searched, and then the whole bank, without another index."""
    bank = mixture(3000, 12)
    queries = bank[:40]
    left_out = torch.zeros(3000, dtype=torch.bool)
    expected = brute_force(queries, bank)
    left_out[torch.from_numpy(expected.argsort(axis=1)[:20, :10].ravel())] = True  # a few rows beyond four
    left_out[torch.from_numpy(expected.argsort(axis=1)[20, :500])] = True  # more than the index returns
    search = search_of(bank, search=ApproximateSearch)
    distances, indices = search.without(left_out).nearest(queries, (0, 3000))
    assert [type(index) for index in search.indexes.values()] == [ApproximateIndex]
    assert not left_out[indices].any()
    expected[:, left_out.numpy()] = np.inf
    np.testing.assert_allclose(distances, np.take_along_axis(expected, indices[:, None].numpy(), 1)[:, 0], atol=1e-5)
    assert (indices.numpy() == expected.argmin(axis=1)).mean() >= 0.9


def test_two_runtimes_for_threads_live_together(run_python, tmp_path):
    """PyTorch and faiss have one each: neither may hang or crash the other if faiss is loaded first.

    In the process of the tests, PyTorch is, and above both have two threads.
    """
    program = """
import faiss, torch
from anomalib_softpatch.components.search.approximate import ApproximateIndex

torch.set_num_threads(2)
bank = torch.randn(1000, 64)
for _ in range(3):
    index = ApproximateIndex(bank)
    distances, indices = index.search(bank)
    products = bank @ bank.T
print(float((indices[:, 0] == torch.arange(1000)).float().mean()))
"""
    result = run_python("-c", program, cwd=tmp_path, env={"OMP_NUM_THREADS": "2"})
    assert float(result.stdout) > 0.95


def test_names():
    check_search("exact")
    check_search("faiss")
    with pytest.raises(ValueError, match="Unknown search 'flat': choose from exact, faiss"):
        check_search("flat")
