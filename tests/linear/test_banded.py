"""Banded ridge against himalaya, brute force and finite differences."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from himalaya.ridge import solve_group_ridge_random_search
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from nedx.errors import ModelError, NedxWarning
from nedx.linear.banded import fit_banded_ridge, random_weights

ALPHAS = np.logspace(-1, 5, 8)
WIDTHS = {"tall": (200, (20, 30)), "wide": (60, (50, 80)), "three": (100, (12, 40, 3))}


def data(samples, widths, targets=8, seed=0):
    rng = np.random.default_rng(seed)
    bands = [rng.normal(size=(samples, p)) * np.linspace(1, 3, p) + 2 for p in widths]
    each = [x @ rng.normal(size=(x.shape[1], targets)) for x in bands]
    mixed = sum(part * rng.uniform(0, 2, targets) for part in each)
    return bands, mixed + rng.normal(size=mixed.shape) * 20 + 5


@pytest.mark.parametrize(("samples", "widths"), WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_choices_and_weights_are_those_of_himalaya(samples, widths, dtype):
    bands, y = data(samples, widths)
    weights = random_weights(6, len(widths))
    deltas, coef, _, intercept = solve_group_ridge_random_search(
        bands,
        y,
        n_iter=weights,
        alphas=ALPHAS,
        fit_intercept=True,
        cv=5,
        return_weights=True,
        progress_bar=False,
        warn=False,
    )
    fit = fit_banded_ridge([x.astype(dtype) for x in bands], y.astype(dtype), ALPHAS, weights)
    tolerance = 1e-9 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(np.log(fit.penalty), -deltas, atol=1e-9)
    assert len(np.unique(fit.penalty[0])) > 2
    assert fit.coef.dtype == dtype
    np.testing.assert_allclose(fit.coef, coef, atol=tolerance * np.abs(coef).max())
    np.testing.assert_allclose(fit.intercept, intercept, atol=100 * tolerance)


def brute(bands, y, penalty, folds):
    """Squared errors of one target on samples held out, and weights, one refit each."""
    x = np.concatenate(bands, 1)
    scale = np.repeat(penalty**-0.5, [band.shape[1] for band in bands])
    error = 0.0
    for train, test in KFold(folds).split(x):
        fit = Ridge(1.0).fit(x[train] * scale, y[train])
        error += ((fit.predict(x[test] * scale) - y[test]) ** 2).sum()
    return error, Ridge(1.0).fit(x * scale, y).coef_ * scale


@pytest.mark.parametrize(("samples", "widths"), WIDTHS.values(), ids=WIDTHS)
def test_refinement_finds_better_penalties_and_fits_with_them(samples, widths):
    bands, y = data(samples, widths)
    search = fit_banded_ridge(bands, y, ALPHAS, 6)
    refined = fit_banded_ridge(bands, y, ALPHAS, 6, refine=15)
    assert (refined.score >= search.score).all()
    assert (refined.score > search.score + 1e-3).any()
    for fit in (search, refined):
        for target in range(y.shape[1]):
            error, coef = brute(bands, y[:, target], fit.penalty[:, target], 5)
            spread = ((y[:, target] - y[:, target].mean()) ** 2).sum()
            assert fit.score[target] == pytest.approx(1 - error / spread, abs=1e-7)
            np.testing.assert_allclose(fit.coef[:, target], coef, atol=1e-7 * np.abs(coef).max())


def test_refinement_ends_where_the_error_is_flat():
    bands, y = data(150, (10, 15), targets=3)
    fit = fit_banded_ridge(bands, y, ALPHAS, 6, refine=60)
    for target in range(3):
        penalty = fit.penalty[:, target]
        here, _ = brute(bands, y[:, target], penalty, 5)
        for band in range(2):
            for factor in (0.7, 1.4):
                moved = penalty.copy()
                moved[band] *= factor
                assert brute(bands, y[:, target], moved, 5)[0] > here * (1 - 1e-6)


def test_generalised_cross_validation():
    bands, y = data(80, (10, 15), targets=3)
    weights = random_weights(4, 2)
    fit = fit_banded_ridge(bands, y, ALPHAS, weights, "gcv")
    x = np.concatenate(bands, 1)
    x, n = x - x.mean(0), len(x)
    errors = []
    for even in weights:
        scaled = x * np.sqrt(np.repeat(even, [10, 15]))
        for alpha in ALPHAS:
            inverse = np.linalg.inv(scaled.T @ scaled + alpha * np.eye(25))
            hat = scaled @ inverse @ scaled.T + 1 / n
            left = ((y - hat @ y) ** 2).sum(0) / (1 - np.trace(hat) / n) ** 2
            errors.append(1 - left / ((y - y.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(fit.score, np.max(errors, 0), atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 60), columns=st.integers(1, 9), memory=st.sampled_from([1, 2**28]))
def test_chunks_do_not_matter(rows, columns, memory):
    bands, y = data(60, (7, 11), targets=9)
    whole = fit_banded_ridge(bands, y, ALPHAS, 4)
    lazy = [da.from_array(x, chunks=(rows, 5)) for x in bands]
    chunked = da.from_array(y, chunks=(rows, columns))
    fit = fit_banded_ridge(lazy, chunked, ALPHAS, 4, memory=memory)
    np.testing.assert_array_equal(fit.penalty, whole.penalty)
    np.testing.assert_allclose(fit.coef, whole.coef, atol=1e-9)


def test_groups_stay_in_one_fold():
    bands, y = data(60, (7, 11), targets=3)
    groups = np.arange(60) // 3
    fit = fit_banded_ridge(bands, y, ALPHAS, 4, 5, groups=groups)
    folds = np.empty(60, int)
    from sklearn.model_selection import GroupKFold

    for fold, (_, held) in enumerate(GroupKFold(5).split(y, groups=groups)):
        folds[held] = fold
    np.testing.assert_array_equal(fit.score, fit_banded_ridge(bands, y, ALPHAS, 4, folds).score)
    with pytest.raises(ModelError, match="split across folds"):
        fit_banded_ridge(bands, y, ALPHAS, 4, np.arange(60) % 5, groups=groups)


def test_predictions_of_bands_sum_to_the_prediction():
    bands, y = data(60, (7, 11))
    fit = fit_banded_ridge(bands, y, ALPHAS, 4)
    new, _ = data(20, (7, 11), seed=1)
    expected = np.concatenate(new, 1) @ fit.coef + fit.intercept
    np.testing.assert_allclose(fit.predict(new), expected)
    parts = fit.predict_bands(new)
    assert parts.shape == (2, 20, 8)
    np.testing.assert_allclose(parts.sum(0) + y.mean(0), expected)
    lazy = fit.predict_bands([da.from_array(x, chunks=7) for x in new])
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), parts)


def test_a_band_without_weight_is_not_used():
    bands, y = data(60, (7, 11))
    fit = fit_banded_ridge(bands, y, ALPHAS, np.array([[1.0, 0.0]]), refine=3)
    assert (fit.penalty[1] == np.inf).all()
    assert not fit.coef[7:].any()


def test_constant_targets_score_nothing():
    bands, y = data(60, (7, 11))
    y[:, 2] = 3
    fit = fit_banded_ridge(bands, y, ALPHAS, 4, refine=2)
    np.testing.assert_allclose(fit.predict(bands)[:, 2], 3, atol=1e-9)
    assert np.isfinite(fit.score).all()
    assert fit.score[2] == 0


def test_weightings_lie_on_the_simplex():
    drawn = random_weights(50, 3, seed=2)
    np.testing.assert_allclose(drawn.sum(1), 1)
    np.testing.assert_array_equal(drawn[0], [1 / 3] * 3)
    np.testing.assert_array_equal(drawn, random_weights(50, 3, seed=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": []}, "bands have shapes"),
        ({"bands": [np.ones((60, 2)), np.ones((59, 2))]}, "of the same samples"),
        ({"y": np.ones((59, 2))}, "60 samples, responses 59"),
        ({"y": np.ones((60, 0))}, "responses have no columns"),
        ({"alphas": [0.0, 1]}, "positive"),
        ({"weights": 0}, "one or more"),
        ({"weights": np.ones((3, 3))}, "2 bands"),
        ({"weights": -np.ones((3, 2))}, "negative"),
        ({"cv": "loo"}, "number of folds"),
        ({"cv": "gcv", "refine": 1}, "'gcv' with refine"),
        ({"cv": 61}, "smaller cv"),
        ({"y": np.full((60, 2), np.nan)}, "NaN"),
    ],
)
def test_bad_input(changes, message):
    bands, y = data(60, (7, 11))
    given_ = {"bands": bands, "y": y, "alphas": ALPHAS, "weights": 4, **changes}
    with pytest.raises(ModelError, match=message):
        fit_banded_ridge(**given_)


def test_penalties_that_end_too_early_are_pointed_out():
    bands, y = data(200, (20, 30))
    with pytest.warns(NedxWarning, match="smaller alphas"):
        fit_banded_ridge(bands, y, [1e4, 1e6], 3)
