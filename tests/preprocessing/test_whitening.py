"""Noise normalisation against scikit-learn's covariance and scipy's matrix power."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import fractional_matrix_power
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler

import nedx
from nedx.errors import SchemaError, SelectionError
from nedx.preprocessing.whitening import noise_covariance, whiten
from tests.laziness import computes_at_most
from tests.preprocessing.trials import make_trials


def shrunk(samples):
    """Return scikit-learn's covariance with automatic shrinkage (sample, channel)."""
    scaler = StandardScaler()
    covariance = ledoit_wolf(scaler.fit_transform(samples))[0]
    return scaler.scale_[:, None] * covariance * scaler.scale_[None, :]


def published(values, conditions, per):
    """The loop as it is published: over conditions, then over times or trials."""
    found = []
    for condition in np.unique(conditions):
        trials = values[conditions == condition]
        if per == "time":
            found.append(np.mean([shrunk(trials[:, :, t]) for t in range(values.shape[2])], 0))
        else:
            found.append(np.mean([shrunk(trial.T) for trial in trials], 0))
    return np.mean(found, 0)


def correlated(rng, trials, channels=5, times=7):
    mixing = rng.normal(size=(channels, channels)) * np.linspace(0.5, 3, channels)[:, None]
    return np.einsum("cd,ndt->nct", mixing, rng.normal(size=(trials, channels, times)))


@pytest.mark.parametrize("per", ["time", "trial"])
@pytest.mark.parametrize("counts", [(2, 2, 2, 2), (5, 3, 9, 4), (20, 20)])
def test_covariance_is_that_of_scikit_learn(rng, per, counts):
    conditions = np.repeat(np.arange(len(counts)), counts)
    order = rng.permutation(conditions.size)
    values = correlated(rng, conditions.size)[order]
    found = noise_covariance(values, conditions[order], per)
    np.testing.assert_allclose(found, published(values, conditions[order], per), rtol=1e-10)


@pytest.mark.parametrize("fit", ["train", "train_and_test"])
@pytest.mark.parametrize("per", ["time", "trial"])
def test_whitening_is_the_published_formula(rng, fit, per):
    values = correlated(rng, 48).astype(np.float32)
    images = np.repeat(np.arange(12), 4)
    partition = np.where(images % 3 == 0, "test", "train")
    session = np.tile([1, 1, 2, 2], 12)
    ds = make_trials(values, session=session, partition=partition, images=images, chunk=10)
    found = whiten(ds, fit=fit, per=per)
    for one in (1, 2):
        here = session == one
        kinds = ["train"] if fit == "train" else ["train", "test"]
        covariances = [
            published(values[here & (partition == k)], images[here & (partition == k)], per)
            for k in kinds
        ]
        root = fractional_matrix_power(np.mean(covariances, 0), -0.5)
        expected = np.swapaxes(np.swapaxes(values[here], 1, 2) @ root, 1, 2)
        np.testing.assert_allclose(found.response.values[here], expected, rtol=2e-4, atol=2e-5)
    attrs = found.response.attrs
    assert (attrs["units"], attrs["normalization"]) == ("1", "whitened")
    assert found.attrs["preprocessing"] == [
        {"step": "whiten", "scope": "session", "fit": fit, "per": per}
    ]
    nedx.validate(found)


def test_test_trials_do_not_shape_what_is_fitted_to_training_trials(rng):
    values = correlated(rng, 24)
    partition = np.repeat(["train", "test"], 12)
    other = values.copy()
    other[12:] *= 100
    one, two = (
        whiten(make_trials(v, partition=partition, session=np.ones(24))).response.values[:12]
        for v in (values, other)
    )
    np.testing.assert_array_equal(one, two)


def test_noise_becomes_white(rng):
    """With many trials the remaining covariance of the training noise is the identity."""
    mixing = np.linspace(0.5, 3, 5)[:, None] * (np.eye(5) + 0.3)
    values = np.einsum("cd,ndt->nct", mixing, rng.normal(size=(4000, 5, 2)))
    ds = whiten(make_trials(values, images=np.arange(4000) // 400, session=np.ones(4000)))
    noise = ds.response.values.reshape(10, 400, 5, 2)
    noise = noise - noise.mean(1, keepdims=True)
    flat = np.moveaxis(noise, 2, -1).reshape(-1, 5)
    np.testing.assert_allclose(np.cov(flat.T), np.eye(5), atol=0.05)


def test_nothing_is_computed_when_called(rng):
    ds = make_trials(correlated(rng, 24), chunk=5)
    with computes_at_most(0):
        assert whiten(ds).response.chunks


@settings(max_examples=10)
@given(chunk=st.integers(1, 24))
def test_results_do_not_depend_on_chunks(chunk):
    values = correlated(np.random.default_rng(3), 24)
    whole = whiten(make_trials(values)).response.values
    with dask.config.set(scheduler="sync"):
        cut = whiten(make_trials(values, chunk=chunk)).response.values
    np.testing.assert_allclose(cut, whole, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_whitened(rng):
    values = correlated(rng, 24)
    ds = make_trials(values)
    with pytest.raises(SelectionError, match="assign_coords\\(partition"):
        whiten(ds.drop_vars("partition"))
    with pytest.raises(SelectionError, match="assign_coords\\(session"):
        whiten(ds.drop_vars("session"))
    with pytest.raises(SelectionError, match=r"session \(2,\)|session 2"):
        whiten(make_trials(values, partition=["train"] * 12 + ["test"] * 12))
    with pytest.raises(SchemaError, match="needs \\(trial, channel, time\\)"):
        whiten(ds.isel(time=0))
    with pytest.raises(SelectionError, match="no image has two"):
        whiten(make_trials(values, images=np.arange(24))).compute()
    with pytest.raises(SelectionError, match="per is 'time' or 'trial', not 'trials'"):
        whiten(ds, per="trials")
    with pytest.raises(SelectionError, match="scope is 'session' or 'train', not 'run'"):
        whiten(ds, scope="run")
    missing = ds.assign(response=ds.response.where(ds.response != ds.response[3, 1, 0]))
    with pytest.raises(SelectionError, match="responses hold NaN or infinite values"):
        whiten(missing).compute()
    values[:, 2] = 1.0
    with pytest.raises(SelectionError, match="singular"):
        whiten(make_trials(values)).compute()
