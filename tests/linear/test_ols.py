"""Least squares against scikit-learn and the pseudo-inverse."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from nedx.errors import ModelError
from nedx.linear.ols import fit_ols


def data(samples=80, features=12, targets=7, largest=1000):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, features)) * np.geomspace(1, largest, features) + 50
    return x, x @ rng.normal(size=(features, targets)) + rng.normal(size=(samples, targets)) * 9 - 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_weights_are_those_of_scikit_learn(dtype, tolerance):
    x, y = data()
    theirs = LinearRegression().fit(x, y)
    fit = fit_ols(x.astype(dtype), y.astype(dtype))
    assert fit.coef.dtype == dtype
    np.testing.assert_allclose(fit.coef.T, theirs.coef_, atol=tolerance)
    predicted = theirs.predict(x)
    scale = np.abs(predicted).max()
    np.testing.assert_allclose(x @ fit.coef + fit.intercept, predicted, atol=tolerance * scale)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 80), columns=st.integers(1, 7), memory=st.sampled_from([1, 2**28]))
def test_chunks_do_not_matter(rows, columns, memory):
    x, y = data()
    whole = fit_ols(x, y)
    lazy = da.from_array(x, chunks=(rows, 5)), da.from_array(y, chunks=(rows, columns))
    fit = fit_ols(*lazy, memory=memory)
    np.testing.assert_allclose(fit.coef, whole.coef, atol=1e-10)
    np.testing.assert_allclose(fit.intercept, whole.intercept, atol=1e-8)


def collinear():
    x, y = data()
    return np.concatenate([x, x[:, :2] @ [[1.0], [3.0]]], 1), y


def constant():
    x, y = data()
    return np.concatenate([x, np.full((len(x), 1), 3.0)], 1), y


def few():
    return data(samples=12, largest=5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (collinear, "span 12 dimensions only"),
        (constant, "span 12 dimensions only"),
        (few, "12 samples do not determine the weights of 12"),
    ],
)
def test_undetermined_weights_are_an_error_or_the_smallest(make, message, dtype):
    x, y = make()
    with pytest.raises(ModelError, match=message):
        fit_ols(x.astype(dtype), y.astype(dtype))
    fit = fit_ols(x.astype(dtype), y.astype(dtype), minimum_norm=True)
    expected = np.linalg.pinv(x - x.mean(0), rcond=1e-10) @ (y - y.mean(0))
    tolerance = 1e-7 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(fit.coef, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "80 samples, responses 79"),
        (lambda x, y: (np.where(x == x[4, 0], np.inf, x), y), r"features hold .* \[4\]"),
        (lambda x, y: (x, np.where(y == y[5, 1], np.nan, y)), r"responses hold .* \[5\]"),
        (lambda x, y: (np.ones_like(x), y), "constant"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ModelError, match=message):
        fit_ols(*change(*data()))
