"""L2LiR against the package of its authors, and the algorithm written out plainly."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from fastl2lir import FastL2LiR
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import ModelError
from nedx.linear.l2lir import fit_l2lir


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
        ({"n_features": 0}, "n_features is 0"),
        ({"y": np.ones((89, 2))}, "90 samples, units 89"),
        ({"x": np.full((90, 4), np.nan)}, "inputs hold NaN"),
        ({"y": np.full((90, 4), np.inf)}, "units hold NaN or infinity"),
    ],
)
def test_bad_input(changes, message):
    x, y = data()
    with pytest.raises(ModelError, match=message):
        fit_l2lir(**{"x": x, "y": y, **changes})
    with pytest.raises(ModelError, match="3 inputs were given"):
        fit_l2lir(x, y).predict(x[:, :3])
