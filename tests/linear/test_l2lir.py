"""L2LiR against the package of its authors, and the algorithm written out plainly.

The golden cases are made by ``tests/oracles/make_l2lir.py``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
from fastl2lir import FastL2LiR
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from nedx.errors import ModelError
from nedx.linear import l2lir, l2lir_solving
from nedx.linear.l2lir import L2LiRInputs, fit_l2lir
from nedx.linear.lapack import PositiveSystem, one_core_each

GOLDEN = np.load(Path(__file__).parents[1] / "oracles" / "l2lir.npz")
CASES = sorted({name.partition("/")[0] for name in GOLDEN.files})


def data(samples=90, inputs=40, units=13, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, inputs)) * rng.uniform(0.5, 2, inputs) + 0.3
    sparse = rng.normal(size=(inputs, units)) * (rng.random((inputs, units)) < 0.2)
    return x, x @ sparse + rng.normal(size=(samples, units)) + 1.5


def plain(x, y, alpha, count):
    """The algorithm unit by unit: the inputs of largest |r|, and a penalised constant."""
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    dense, bias = np.zeros((x.shape[1], y.shape[1])), np.zeros(y.shape[1])
    for unit in range(y.shape[1]):
        r = np.zeros(x.shape[1])
        for i in range(x.shape[1]):
            if x[:, i].var() >= 1e-8:
                r[i] = np.corrcoef(x[:, i], y[:, unit])[0, 1]
        best = np.append(np.argsort(np.abs(r))[::-1][:count], x.shape[1])
        some = ones[:, best]
        solved = np.linalg.solve(some.T @ some + alpha * np.eye(count + 1), some.T @ y[:, unit])
        dense[best[:-1], unit], bias[unit] = solved[:-1], solved[-1]
    return dense, bias


@pytest.mark.parametrize("samples", [90, 25, 41, 42], ids="{} samples, 40 inputs".format)
@pytest.mark.parametrize("alpha", [0.1, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-4)])
def test_all_inputs_as_in_the_package_of_the_authors(samples, alpha, dtype, tolerance):
    x, y = data(samples)
    theirs = FastL2LiR().fit(x, y, alpha=alpha, n_feat=0)
    fit = fit_l2lir(x.astype(dtype), y.astype(dtype), alpha, None)
    assert fit.weight.dtype == dtype
    np.testing.assert_allclose(fit.dense(), theirs.W, atol=tolerance)
    np.testing.assert_allclose(fit.bias, theirs.b[0], atol=tolerance)
    np.testing.assert_allclose(fit.predict(x), theirs.predict(x), atol=40 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-5)])
@pytest.mark.parametrize("count", [1, 7, 39])
def test_chosen_inputs_as_in_the_plain_algorithm(count, dtype, tolerance):
    x, y = data()
    dense, bias = plain(x, y, 3.0, count)
    fit = fit_l2lir(x.astype(dtype), y.astype(dtype), 3.0, count)
    assert fit.index.shape == (13, count)
    assert fit.index.dtype == np.int32
    assert (np.diff(fit.index, axis=1) > 0).all()
    np.testing.assert_allclose(fit.dense(), dense, atol=tolerance)
    np.testing.assert_allclose(fit.bias, bias, atol=tolerance)
    np.testing.assert_allclose(fit.predict(x), x @ dense + bias, atol=40 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_golden_cases(case, dtype, tolerance):
    x, y, alpha, count, w, b, predicted = (
        GOLDEN[f"{case}/{key}"] for key in ("x", "y", "alpha", "n_feat", "W", "b", "predicted")
    )
    fit = fit_l2lir(x.astype(dtype), y.astype(dtype), float(alpha), int(count) or None)
    np.testing.assert_array_equal(fit.dense() != 0, w != 0)
    np.testing.assert_allclose(fit.dense(), w, atol=tolerance)
    np.testing.assert_allclose(fit.bias, b[0], atol=tolerance)
    np.testing.assert_allclose(fit.predict(x.astype(float)), predicted, atol=20 * tolerance)


@pytest.mark.parametrize("count", [None, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_repeats_of_an_image_need_its_features_once(count, dtype, tolerance):
    """The trials of an image share a row of units, in whatever order they were recorded."""
    x, y = (GOLDEN[f"repeats/{key}"].astype(dtype) for key in ("x", "y"))
    if count is not None:
        expected = GOLDEN["repeats/W"]
    else:
        expected = FastL2LiR().fit(x.astype(float), y.astype(float), alpha=10.0, n_feat=0).W
    order = np.random.default_rng(0).permutation(len(x))
    rows = np.repeat(np.arange(10), 5)[order]
    fit = fit_l2lir(x[order], y[::5], 10.0, count, rows=rows)
    np.testing.assert_allclose(fit.dense(), expected, atol=tolerance)


def test_inputs_nearly_tied_are_told_apart_in_float32():
    """Of twins that differ in the eighth digit the better one is chosen, as in float64."""
    rng = np.random.default_rng(0)
    samples, inputs, units = 300, 200, 40
    y = rng.standard_normal((samples, units)).astype(np.float32)
    x = rng.standard_normal((samples, inputs)).astype(np.float32)
    x[:, 100:] = x[:, :100] + np.float32(1e-6) * rng.standard_normal((samples, 100))
    exact = np.abs([[np.corrcoef(x[:, i].astype(float), y[:, u].astype(float))[0, 1]
                     for i in range(inputs)] for u in range(units)])  # fmt: skip
    best = np.sort(np.argsort(-exact, axis=1)[:, :41], axis=1)
    np.testing.assert_array_equal(fit_l2lir(x, y, 1.0, 41).index, best)


def test_one_gram_matrix_serves_all_layers_and_penalties(monkeypatch):
    """It is computed once for one set of inputs, whatever is fitted to these."""
    computed = []
    gram = l2lir.gram_matrix
    monkeypatch.setattr(l2lir, "gram_matrix", lambda x: computed.append(x.shape) or gram(x))
    x, y = data()
    inputs = L2LiRInputs(x, dtype=np.float64)
    for alpha in (1.0, 10.0):
        for layer in (y, 2 * y[:, :5]):
            dense, _ = plain(x, layer, alpha, 7)
            (found,) = [fit for _, fit in inputs.fit_blocks(layer, alpha, 7)]
            np.testing.assert_allclose(found.dense(), dense, atol=1e-10)
    assert computed == [(90, 41)]


@pytest.mark.parametrize("bytes_at_once", [1, 2**28])
def test_systems_in_batches(bytes_at_once, monkeypatch):
    """What a GPU does, on the processor: the same systems solved one by one with numpy."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(l2lir_solving, "_GATHERED_BYTES", bytes_at_once)
    x, right = rng.standard_normal((60, 20)), rng.standard_normal((7, 5))
    rows = np.stack([np.sort(rng.choice(20, 5, replace=False)) for _ in range(7)])
    gram = x.T @ x
    found = l2lir_solving.solved_in_batches(*map(torch.from_numpy, (gram, right, rows)), 3.0)
    for unit, own in enumerate(rows):
        system = gram[np.ix_(own, own)] + 3 * np.eye(5)
        np.testing.assert_allclose(found[unit], np.linalg.solve(system, right[unit]), atol=1e-12)


def solve(system, right):
    memory = PositiveSystem(len(system), system.dtype)
    memory.upper[:] = np.triu(system)
    memory.solve(right)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_solve_positive_systems_side_by_side(dtype):
    rng = np.random.default_rng(0)
    x, right = rng.standard_normal((8, 90, 40)), rng.standard_normal((8, 40))
    systems, found = (x.mT @ x + np.eye(40)).astype(dtype), right.astype(dtype)
    both = zip(systems.astype(float), found.astype(float), strict=True)
    expected = [np.linalg.solve(a, b) for a, b in both]
    before = [library["num_threads"] for library in threadpool_info()]
    with one_core_each(), one_core_each(), ThreadPoolExecutor(4) as pool:
        assert {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} == {1}
        list(pool.map(solve, systems, found))
    assert [library["num_threads"] for library in threadpool_info()] == before
    # In float32 that is the rounding of the solution alone.
    atol = 1e-8 if dtype is np.float32 else 1e-13
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        solve(-np.eye(3, dtype=dtype), np.ones(3, dtype))


@pytest.mark.parametrize("memory", [1, 10_000])
def test_a_small_budget_changes_nothing(memory):
    x, y = data()
    whole, pieces = fit_l2lir(x, y, 3.0, 7), fit_l2lir(x, y, 3.0, 7, memory=memory)
    np.testing.assert_array_equal(pieces.index, whole.index)
    np.testing.assert_allclose(pieces.weight, whole.weight, atol=1e-12)
    parts = [part for part, _ in L2LiRInputs(x).fit_blocks(y, 3.0, 7, memory=memory)]
    assert len(parts) > 1


@pytest.mark.parametrize("count", [40, 500])
def test_no_choice_where_there_is_none(count):
    x, y = data()
    np.testing.assert_array_equal(
        fit_l2lir(x, y, 3.0, count).dense(), fit_l2lir(x, y, 3.0, None).dense()
    )


def test_dead_inputs_are_not_chosen():
    x, y = data()
    x[:, 5] = 7.0
    x[:, 6] *= 1e-6
    fit = fit_l2lir(x, y, 3.0, 20)
    assert not np.isin(fit.index, [5, 6]).any()
    np.testing.assert_allclose(fit.dense(), plain(x, y, 3.0, 20)[0], atol=1e-10)


def test_a_unit_of_zeros_gets_no_weights():
    x, y = data()
    y[:, 4] = 0
    for count in (None, 7):
        fit = fit_l2lir(x, y, 3.0, count)
        assert not fit.weight[4].any()
        assert fit.bias[4] == 0


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 90), columns=st.integers(1, 13), count=st.sampled_from([None, 5]))
def test_chunks_do_not_matter(rows, columns, count):
    x, y = data()
    whole = fit_l2lir(x, y, 3.0, count)
    lazy = da.from_array(x, chunks=(rows, 9)), da.from_array(y, chunks=(rows, columns))
    fit = fit_l2lir(*lazy, 3.0, count)
    np.testing.assert_array_equal(fit.index, whole.index)
    np.testing.assert_allclose(fit.weight, whole.weight, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": np.inf}, "alpha is inf"),
        ({"n_features": 0}, "n_features is 0"),
        ({"n_features": 20.0}, "n_features is 20.0; type a whole number"),
        ({"x": np.ones((0, 4)), "y": np.ones((0, 2))}, "inputs are of no samples"),
        ({"y": np.ones((89, 2))}, "90 samples, units 89"),
        ({"x": np.full((90, 4), np.nan)}, "inputs hold NaN"),
        ({"y": np.full((90, 4), np.inf)}, "units hold NaN or infinity"),
        ({"rows": np.zeros(89, int)}, "89 rows of units for 90 samples"),
        ({"rows": np.zeros(90)}, "rows are float64, expected whole numbers"),
        ({"rows": np.arange(90) - 1}, "rows begin at -1"),
        ({"rows": np.arange(90) // 2}, "45 samples, units 90"),
    ],
)
def test_bad_input(changes, message):
    x, y = data()
    with pytest.raises(ModelError, match=message):
        fit_l2lir(**{"x": x, "y": y, **changes})
    with pytest.raises(ModelError, match="3 inputs were given"):
        fit_l2lir(x, y).predict(x[:, :3])


@pytest.mark.parametrize("count", [None, 45, 30])
def test_a_penalty_that_is_lost_in_rounding_is_told(count):
    """Raw scanner units in float32: products of 1e8 leave nothing of a penalty of 1e-3."""
    x, y = data(samples=40, inputs=50)
    raw = (10_000 + x[:, :1] * 1e-3 + np.zeros_like(x)).astype(np.float32)
    with pytest.raises(ModelError, match=r"alpha 0\.001 is too small .* in float32"):
        fit_l2lir(raw, y.astype(np.float32), 1e-3, count)
