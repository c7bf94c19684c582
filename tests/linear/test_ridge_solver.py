"""Ridge and principal components against scikit-learn and brute force."""

from __future__ import annotations

import dask.array as da
import distributed
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from nedx.errors import ModelError, NedxWarning
from nedx.linear.folds import fold_numbers
from nedx.linear.pca import fit_pca
from nedx.linear.ridge import RidgeSolver, fit_ridge
from nedx.synthesis.clusters import local_cluster

ALPHAS = np.logspace(-1, 4, 7)


@pytest.fixture
def data():
    return samples()


def samples():
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
    fit = fit_ridge(x, y, ALPHAS, cv="gcv")
    centred = x - x.mean(0)
    for i, alpha in enumerate(ALPHAS):
        hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(12), centred.T) + 1 / n
        residual = ((y - hat @ y) ** 2).sum(0) / (1 - np.trace(hat) / n) ** 2
        expected = 1 - residual / ((y - y.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(fit.score[i], expected, atol=1e-9)


@pytest.mark.parametrize("cv", [5, "gcv", "loo"])
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 60), columns=st.integers(1, 5), memory=st.integers(1, 2**16))
def test_chunks_do_not_matter(cv, rows, columns, memory):
    x, y = samples()
    whole = fit_ridge(x, y, ALPHAS, cv)
    lazy = da.from_array(y, chunks=(rows, columns))
    pieces = fit_ridge(da.from_array(x, chunks=(rows, 5)), lazy, ALPHAS, cv, memory=memory)
    np.testing.assert_allclose(pieces.coef, whole.coef, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(pieces.alpha, whole.alpha)


def test_a_cluster_fits_blocks_where_their_chunks_are_read(tmp_path):
    x, few = samples()
    y = np.tile(few, 40)
    zarr.save_array(tmp_path / "y.zarr", y)
    lazy = da.from_zarr(tmp_path / "y.zarr", chunks=(40, 50))
    here = fit_ridge(x, few, ALPHAS, per_target=False)
    with local_cluster(2):
        with distributed.get_task_stream() as stream:
            there = fit_ridge(x, lazy, ALPHAS, per_target=False, memory=1)
        tasks = [task for task in stream.data if "_there" in str(task["key"])]
    np.testing.assert_allclose(there.coef, np.tile(here.coef, 40), rtol=1e-9)
    np.testing.assert_array_equal(there.alpha, np.tile(here.alpha, 40))
    # Each of the four blocks twice: to choose the shared penalty, and to fit with it.
    assert len(tasks) == 8
    assert len({task["worker"] for task in tasks}) == 2


def test_each_chunk_of_responses_is_read_once():
    x, y = samples()
    read = []

    def chunk(block_info=None):
        where = block_info[None]["array-location"]
        read.append(tuple(where))
        return y[tuple(slice(*each) for each in where)]

    chunks = da.core.normalize_chunks((20, 2), y.shape)
    lazy = da.map_blocks(chunk, chunks=chunks, dtype=float, meta=np.empty((0, 0)))
    fit_ridge(x, lazy, ALPHAS)
    assert len(read) == len(set(read)) == 6 * 3


@pytest.mark.filterwarnings("ignore:.*at the end of the penalties")
@pytest.mark.parametrize("shape", [(40, 6), (24, 60), (60, 59)])
@pytest.mark.parametrize("cv", ["loo", 12, 3])
def test_residuals_and_sums_give_the_errors_of_refitting(shape, cv):
    rng = np.random.default_rng(4)
    x = rng.normal(size=shape) + 3
    y = x @ rng.normal(size=(shape[1], 4)) + rng.normal(size=(shape[0], 4)) * [0.1, 2, 5, 20]
    fit = fit_ridge(x, y, ALPHAS, cv)
    expected = brute_scores(x, y, shape[0] if cv == "loo" else cv)
    np.testing.assert_allclose(fit.score, expected, atol=1e-8)
    for target, alpha in enumerate(fit.alpha):
        reference = Ridge(alpha).fit(x, y[:, target])
        np.testing.assert_allclose(fit.coef[:, target], reference.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*at the end of the penalties")
@pytest.mark.parametrize("shape", [(24, 60), (40, 6)])
def test_own_folds_of_one_sample_each_are_leave_one_out_in_any_order(shape):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    fit = fit_ridge(x, y, ALPHAS, rng.permutation(shape[0]))
    np.testing.assert_allclose(fit.score, brute_scores(x, y, shape[0]), atol=1e-8)


def test_leave_one_out_is_that_of_scikit_learn():
    x, y = samples()
    ours = fit_ridge(x, y, ALPHAS, "loo")
    theirs = RidgeCV(ALPHAS, alpha_per_target=True).fit(x, y)
    np.testing.assert_array_equal(ours.alpha, theirs.alpha_)
    np.testing.assert_allclose(ours.coef.T, theirs.coef_, rtol=1e-7, atol=1e-9)


def test_single_precision_keeps_choice_and_prediction():
    x, y = samples()
    exact = fit_ridge(x, y, ALPHAS)
    single = fit_ridge(x.astype("f4"), y.astype("f4"), ALPHAS)
    assert single.coef.dtype == np.float32
    np.testing.assert_array_equal(single.alpha, exact.alpha)
    predicted = x @ exact.coef + exact.intercept
    np.testing.assert_allclose(
        x @ single.coef + single.intercept, predicted, atol=1e-5 * np.abs(predicted).max()
    )


def test_many_penalties_in_single_precision():
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(300, 40)) * np.arange(1, 41) ** -0.7).astype("f4")
    y = (x @ rng.normal(size=(40, 30)) + rng.normal(size=(300, 30)) * np.arange(30)).astype("f4")
    alphas = np.logspace(-2, 5, 81)
    many = fit_ridge(x, y, alphas)
    exact = fit_ridge(x, y.astype(float), alphas)
    np.testing.assert_allclose(many.score, exact.score, atol=2e-6)


def test_one_penalty_for_all_targets(data):
    x, y = data
    fit = fit_ridge(x, y, ALPHAS, per_target=False)
    best = ALPHAS[brute_scores(x, y, 5).mean(1).argmax()]
    assert set(fit.alpha) == {best}
    np.testing.assert_allclose(fit.coef.T, Ridge(best).fit(x, y).coef_, rtol=1e-7, atol=1e-9)


def test_a_solver_serves_targets_that_come_later():
    x, y = samples()
    solver = RidgeSolver(x, ALPHAS, y_dtype=float)
    for some in (slice(0, 2), slice(2, 5)):
        (fit,) = solver.blocks(y[:, some])
        np.testing.assert_allclose(fit.coef, fit_ridge(x, y[:, some], ALPHAS).coef, rtol=1e-9)


def test_groups_stay_together():
    groups = np.repeat(np.arange(10), 3)
    folds = fold_numbers(30, 4, groups)
    assert len(np.unique(folds)) == 4
    assert all(len(set(folds[groups == group])) == 1 for group in range(10))
    split = folds.copy()
    split[[9, 12]] += 1
    with pytest.raises(ModelError, match="2 groups are split across folds"):
        fold_numbers(30, split, groups)
    with pytest.raises(ModelError, match="10 groups cannot fill 11 folds"):
        fold_numbers(30, 11, groups)
    with pytest.raises(ModelError, match="would split groups"):
        fold_numbers(30, "loo", groups)


def test_penalties_that_end_too_early_are_pointed_out(data):
    x, y = data
    with pytest.warns(NedxWarning, match=r"best at the end of the penalties, 3000, .*smaller"):
        fit_ridge(x, y, [3e3, 1e6])
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(100, 60))
    noisy = wide @ rng.normal(size=(60, 3)) + 4 * rng.normal(size=(100, 3))
    with pytest.warns(NedxWarning, match="3 of 3 .*larger alphas"):
        fit_ridge(wide, noisy, [0.1, 10])


def test_more_features_than_samples():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 50)), rng.normal(size=(20, 2))
    fit = fit_ridge(x, y, [3.0])
    np.testing.assert_allclose(fit.coef.T, Ridge(3.0).fit(x, y).coef_, atol=1e-9)


@pytest.mark.parametrize("cv", [5, "gcv", "loo", 60])
def test_constant_targets_score_nothing_and_choose_nothing(cv):
    # Single precision rounds the means of most of these constants.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 8)).astype("f4")
    y = (x @ rng.normal(size=(8, 3)) + rng.normal(size=(100, 3))).astype("f4")
    constants = (rng.normal(size=20) * np.geomspace(1e-3, 1e6, 20)).astype("f4")
    both = np.concatenate([y, np.tile(constants, (100, 1))], 1)
    fit = fit_ridge(x, both, ALPHAS, cv, per_target=False)
    assert set(fit.alpha) == set(fit_ridge(x, y, ALPHAS, cv, per_target=False).alpha)
    assert not fit.score[:, 3:].any()
    assert not fit.coef[:, 3:].any()
    np.testing.assert_array_equal(fit.intercept[3:], constants)


@pytest.mark.parametrize("cv", [5, "gcv", "loo"])
def test_responses_far_from_zero_in_single_precision(cv):
    x, y = samples()
    y = (y + 1e5).astype("f4")
    single, exact = fit_ridge(x, y, ALPHAS, cv), fit_ridge(x, y.astype(float), ALPHAS, cv)
    np.testing.assert_allclose(single.score, exact.score, atol=1e-5)
    at_mean = x.mean(0) @ single.coef + single.intercept
    np.testing.assert_allclose(at_mean, y.mean(0, dtype=float), rtol=0, atol=2e-3)


def test_constant_and_far_features_of_a_wide_ridge_in_single_precision():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 300)).astype("f4")
    y = (x[:, 200:210] @ rng.normal(size=(10, 3))).astype("f4")
    x[:, :100] = rng.normal(size=100) * np.geomspace(1e-3, 1e6, 100)
    x[:, 100:200] += 1e4
    single = fit_ridge(x, y, ALPHAS, np.arange(50) % 5)
    exact = fit_ridge(x.astype(float), y.astype(float), ALPHAS, np.arange(50) % 5)
    assert np.abs(single.coef[:100]).max() < 1e-6
    np.testing.assert_allclose(single.coef, exact.coef, atol=1e-5)


def test_penalties_in_any_order(data):
    x, y = data
    fit = fit_ridge(x, y, ALPHAS[::-1])
    np.testing.assert_array_equal(fit.alpha, fit_ridge(x, y, ALPHAS).alpha)


def test_samples_are_compared_before_features_are_gone_through():
    lazy = da.map_blocks(lambda: 1 / 0, chunks=((20, 20), (3,)), dtype="f4", meta=np.empty((0, 0)))
    with pytest.raises(ModelError, match="40 samples, responses 39"):
        fit_ridge(lazy, np.ones((39, 2)), ALPHAS)


def test_bad_data_are_named(data):
    x, y = data
    y = y.copy()
    y[4, 1] = np.nan
    with pytest.raises(ModelError, match=r"responses hold NaN .* samples \[4\]"):
        fit_ridge(x, y, ALPHAS)
    with pytest.raises(ModelError, match="positive"):
        fit_ridge(x, data[1], [0.0])
    with pytest.raises(ModelError, match="smaller cv"):
        fit_ridge(x[:3], data[1][:3], ALPHAS, cv=5)
    with pytest.raises(ModelError, match="expected one or more positive numbers"):
        fit_ridge(x, data[1], ["much"])
    with pytest.raises(ModelError, match="an infinite penalty"):
        fit_ridge(x, data[1], [1.0, np.inf], "gcv")
    with pytest.raises(ModelError, match="responses have no columns"):
        fit_ridge(x, data[1][:, :0], ALPHAS)
    with pytest.raises(ModelError, match="features have no columns"):
        fit_ridge(x[:, :0], data[1], ALPHAS)
    with pytest.raises(ModelError, match="squares of the responses do not fit into float32"):
        fit_ridge(x, data[1].astype("f4") * np.float32(1e25), ALPHAS)


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
