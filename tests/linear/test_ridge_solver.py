"""Ridge and principal components against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from nedx.errors import ModelError
from nedx.linear.pca import fit_pca
from nedx.linear.ridge import RidgeGram, contiguous_folds, fit_ridge

ALPHAS = np.logspace(-1, 4, 7)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(103, 12)) * np.linspace(1, 5, 12) + 30
    y = x @ rng.normal(size=(12, 5)) + rng.normal(size=(103, 5)) * [0.1, 3, 30, 100, 300] - 7
    return x, y


def brute_scores(x, y, folds):
    errors = np.zeros((len(ALPHAS), y.shape[1]))
    for train, test in KFold(folds).split(x):
        for i, alpha in enumerate(ALPHAS):
            predicted = Ridge(alpha).fit(x[train], y[train]).predict(x[test])
            errors[i] += ((predicted - y[test]) ** 2).sum(0)
    return 1 - errors / ((y - y.mean(0)) ** 2).sum(0)


@pytest.mark.parametrize("folds", [2, 5])
def test_scores_and_weights_are_those_of_scikit_learn(data, folds):
    x, y = data
    fit = fit_ridge(x, y, ALPHAS, folds)
    expected = brute_scores(x, y, folds)
    np.testing.assert_allclose(fit.score, expected, atol=1e-9)
    np.testing.assert_array_equal(fit.alpha, ALPHAS[expected.argmax(0)])
    assert len(set(fit.alpha)) > 1
    for target, alpha in enumerate(fit.alpha):
        reference = Ridge(alpha).fit(x, y[:, target])
        np.testing.assert_allclose(fit.coef[:, target], reference.coef_, rtol=1e-7, atol=1e-9)
        assert fit.intercept[target] == pytest.approx(reference.intercept_, rel=1e-7)


def test_gcv_is_its_definition_with_the_hat_matrix(data):
    x, y = data
    n = len(x)
    fit = fit_ridge(x, y, ALPHAS, folds=1)
    centred = x - x.mean(0)
    for i, alpha in enumerate(ALPHAS):
        hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(12), centred.T) + 1 / n
        residual = ((y - hat @ y) ** 2).sum(0) / (1 - np.trace(hat) / n) ** 2
        expected = 1 - residual / ((y - y.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(fit.score[i], expected, atol=1e-9)


def test_chunks_do_not_matter(data):
    x, y = data
    whole = fit_ridge(x, y, ALPHAS)
    folds = contiguous_folds(len(x), 5)
    gram = RidgeGram(12, 5, folds=5)
    for start in range(0, len(x), 17):
        part = slice(start, start + 17)
        gram.add(x[part], y[part], folds[part])
    pieces = gram.solve(ALPHAS)
    np.testing.assert_allclose(pieces.coef, whole.coef, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(pieces.alpha, whole.alpha)


def test_more_features_than_samples():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 50)), rng.normal(size=(20, 2))
    fit = fit_ridge(x, y, [3.0])
    np.testing.assert_allclose(fit.coef.T, Ridge(3.0).fit(x, y).coef_, atol=1e-9)


def test_bad_data_are_named(data):
    x, y = data
    y = y.copy()
    y[4, 1] = np.nan
    with pytest.raises(ModelError, match=r"responses hold NaN .* samples \[4\]"):
        fit_ridge(x, y, ALPHAS)
    with pytest.raises(ModelError, match="positive"):
        fit_ridge(x, data[1], [0.0])
    with pytest.raises(ModelError, match="smaller cv"):
        fit_ridge(x[:3], data[1][:3], ALPHAS, folds=5)


@pytest.mark.parametrize("shape", [(40, 300), (200, 30)])
def test_components_are_those_of_scikit_learn(shape):
    rng = np.random.default_rng(2)
    x = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1])) + 100
    x[:, 3] = 7.0
    ours = fit_pca(x, 10)
    scaled = StandardScaler().fit_transform(x)
    theirs = PCA(10, svd_solver="full").fit(scaled)
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_, rtol=1e-5)
    signs = np.sign((ours.components * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.components * signs[:, None], theirs.components_, atol=1e-4)
    np.testing.assert_allclose(ours.scores, scaled @ ours.components.T, atol=1e-3)


def test_no_more_components_than_there_are():
    x = np.random.default_rng(3).normal(size=(6, 40))
    assert fit_pca(x, 100).components.shape == (5, 40)
    with pytest.raises(ModelError, match="two samples"):
        fit_pca(x[:1], 3)
