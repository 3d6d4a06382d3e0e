# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The coreset against Anomalib's KCenterGreedy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from anomalib.models.components import KCenterGreedy
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_softpatch.components import coreset, progress
from anomalib_softpatch.components.coreset import k_center_greedy
from samples import mixture


class Identity:
    """Stands in for the random projection, so that both selections see the same features."""

    def fit(self, features):
        return self

    def transform(self, features):
        return features


def reference(features, size, seed=0):
    torch.manual_seed(seed)
    sampler = KCenterGreedy(features, (size + 0.5) / len(features))
    sampler.model = Identity()
    return torch.tensor(sampler.select_coreset_idxs())


FEATURES = {
    "mixture": mixture(6000, 32),
    "low rank": mixture(3000, 8) @ torch.randn(8, 40, generator=torch.Generator().manual_seed(1)),
    "far from the origin": mixture(2000, 16) + 1000,
    "wide range of scales": mixture(2000, 32) * 10 ** torch.linspace(-3, 3, 32),
    "ties": torch.randint(0, 4, (2000, 5), generator=torch.Generator().manual_seed(2)).float(),
    "duplicates": mixture(500, 16).repeat(4, 1),
    "fewer distinct rows than centers": torch.randint(
        0, 3, (400, 2), generator=torch.Generator().manual_seed(3)
    ).float(),
    "constant": torch.ones(300, 8),
    "few far away": torch.cat((1e5 * mixture(20, 16), mixture(2000, 16))),
    "few far away, low rank": torch.cat((1e5 * mixture(20, 4), mixture(2000, 4))) @ mixture(4, 24, seed=1),
    "two groups far apart": torch.cat((mixture(1500, 80) + 1e4, mixture(1500, 80) - 1e4)),
    "no leading axes": torch.randn(2000, 80, generator=torch.Generator().manual_seed(4)),
    "double precision": mixture(1000, 16).double(),
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("active_size", [16, 4096])
def test_equals_anomalib(name, active_size, monkeypatch):
    """Same centers in the same order, also when many more rows tie than are brought up to date at once."""
    monkeypatch.setattr(coreset, "ACTIVE_SIZE", active_size)
    monkeypatch.setattr(coreset, "BLOCK_SIZE", 2**14)
    monkeypatch.setattr(coreset, "SMALLEST_PART", 64)
    features = FEATURES[name]
    expected = reference(features, size=min(300, len(features) // 4))
    assert k_center_greedy(features, len(expected), first=int(expected[0])).tolist() == expected.tolist()


def test_eligible_rows_only():
    """Rows that are not eligible neither enter nor influence the choice."""
    features = mixture(1500, 16)
    eligible = torch.rand(len(features), generator=torch.Generator().manual_seed(0)) < 0.6
    rows = eligible.nonzero().squeeze(1)
    expected = reference(features[rows], 100)
    chosen = k_center_greedy(features, 100, first=int(rows[expected[0]]), eligible=eligible)
    assert chosen.tolist() == rows[expected].tolist()


@pytest.mark.parametrize("name", FEATURES)
def test_continues_from_given_centers(name):
    """The first centers of a coreset lead to the rest of it; other centers, to the farthest rows, in float64."""
    features = FEATURES[name]
    chosen = k_center_greedy(features, len(features) // 4, first=7)
    assert k_center_greedy(features, len(chosen), first=chosen[: len(chosen) // 2]).tolist() == chosen.tolist()

    points = features.double().numpy()
    if not (points == points.round()).all():  # rows of whole numbers often tie, and are repeated
        first = torch.arange(0, len(features), 40)
        chosen = k_center_greedy(features, len(first) + 5, first)
        assert chosen[: len(first)].tolist() == first.tolist()
        distances = np.min([np.linalg.norm(points - points[row], axis=1) for row in first], axis=0)
        for row in chosen[len(first) :]:
            assert distances[row] >= distances.max() * (1 - 1e-5) > 0
            distances = np.minimum(distances, np.linalg.norm(points - points[row], axis=1))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 6),
    values=st.integers(1, 5),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6, 1e17]),
    copies=st.integers(1, 3),
    seed=st.integers(0, 10),
    data=st.data(),
)
def test_any_shape(rows, columns, values, scale, copies, seed, data):
    """Whatever the rows, the coreset has the requested size and is farthest-first, checked in float64."""
    generator = torch.Generator().manual_seed(seed)
    features = (scale * torch.randint(values, (rows, columns), generator=generator).float()).repeat(copies, 1)
    rows *= copies
    eligible = torch.rand(rows, generator=generator) < 0.7
    eligible[data.draw(st.integers(0, rows - 1))] = True
    candidates = eligible.nonzero().squeeze(1)
    first = int(candidates[data.draw(st.integers(0, len(candidates) - 1))])
    size = data.draw(st.integers(1, len(candidates)))

    chosen = k_center_greedy(features, size, first, eligible)

    assert len(chosen) == size
    assert chosen[0] == first
    assert eligible[chosen].all()
    points = features.double().numpy()
    distances = np.full(rows, np.inf)
    for before, after in pairwise(chosen):
        distances = np.minimum(distances, np.linalg.norm(points - points[before], axis=1))
        assert distances[after] >= distances[eligible].max() * (1 - 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0, "first": 0}, "size must be at least 1, got 0"),
        ({"size": 2, "first": 9}, "first=9 is not one of the 5 rows"),
        ({"size": 2, "first": torch.tensor([0, 1, 2])}, "first must be 1 to 2 centers for a coreset of 2, got 3"),
        ({"size": 2, "first": torch.tensor([], dtype=torch.long)}, "first must be 1 to 2 centers .* got 0"),
        ({"size": 2, "first": 0, "eligible": torch.tensor([False, True, True, True, True])}, "first=0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        k_center_greedy(torch.randn(5, 3), **arguments)


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.float16"):
        k_center_greedy(torch.randn(5, 3).half(), 2, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, 3])
def test_features_that_are_not_finite_are_refused(value, row):
    features = torch.randn(50, 3)
    features[row, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        k_center_greedy(features, 5, 0)


def test_large_values():
    features = 8e17 * torch.rand(800, 16, generator=torch.Generator().manual_seed(0))
    expected = reference(features, 100)
    assert k_center_greedy(features, 100, int(expected[0])).tolist() == expected.tolist()


def test_values_whose_squares_may_overflow_are_refused():
    """The distances themselves are finite here."""
    features = 5e18 * torch.rand(800, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="so large that distances overflow"):
        k_center_greedy(features, 100, 0)


@pytest.mark.parametrize("how", ["matmul precision", "autocast"])
def test_products_of_lower_precision(how, monkeypatch):
    """The coreset is the same if float32 products use numbers of 10 bits, or if autocast is on."""
    monkeypatch.setattr(coreset, "ACTIVE_SIZE", 64)
    features = 50 * mixture(3000, 32)
    expected = reference(features, 300)
    precision = torch.get_float32_matmul_precision()
    try:
        if how == "matmul precision":
            torch.set_float32_matmul_precision("high")
            addmm = torch.addmm

            def short(bias, first, second, alpha):
                if first.dtype == torch.float32:
                    first, second = first.bfloat16().float(), second.bfloat16().float()
                return addmm(bias, first, second, alpha=alpha)

            monkeypatch.setattr(torch, "addmm", short)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            chosen = k_center_greedy(features, 300, int(expected[0]))
    finally:
        torch.set_float32_matmul_precision(precision)
    assert chosen.tolist() == expected.tolist()


def test_precision_of_each_backend():
    """The coreset is the same if PyTorch has no single precision for all backends."""
    features = mixture(800, 32)
    expected = reference(features, 100)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="legacy and new"):
            torch.get_float32_matmul_precision()
        chosen = k_center_greedy(features, 100, int(expected[0]))
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert chosen.tolist() == expected.tolist()


BAR = "Selecting coreset: 100%"


def test_progress_bar(monkeypatch, capfd):
    """It is shown only on request."""
    monkeypatch.setattr(progress, "DELAY", 0)
    k_center_greedy(torch.rand(50, 3), 5, 0)
    assert BAR not in capfd.readouterr().err
    k_center_greedy(torch.rand(50, 3), 5, 0, progress=True)
    assert capfd.readouterr().err.count(BAR) == 1


@pytest.mark.parametrize(("disabled", "shown"), [("", True), ("1", False)])
def test_no_progress_bar_if_the_environment_disables_it(disabled, shown, tmp_path, run_python):
    """TQDM_DISABLE is read once, when tqdm is imported. The rest of the package would take long to import here."""
    code = (
        "import sys\n"
        "module = {}\n"
        "exec(open(sys.argv[1], encoding='utf-8').read(), module)\n"
        "module['DELAY'] = 0\n"
        "with module['progress_bar'](5, 'Selecting coreset', 'patches', True) as bar:\n"
        "    bar.update(5)"
    )
    result = run_python("-c", code, progress.__file__, cwd=tmp_path, env={"TQDM_DISABLE": disabled})
    assert (BAR in result.stderr) == shown
