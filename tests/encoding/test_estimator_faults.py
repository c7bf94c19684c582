"""What estimators of encoding models refuse or warn of, before long work and while scoring."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import nedx.encoding.estimators.base as base
from nedx.encoding.estimators import BandedRidgeEncoder, L2LiREncoder, OLSEncoder, RidgeEncoder
from nedx.errors import ModelError, NedxWarning
from tests.encoding.test_estimators import features_and_responses, with_values
from tests.encoding.truth import GABOR


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (RidgeEncoder(GABOR, n_components=0), "n_components is 0"),
        (RidgeEncoder(GABOR, n_components=2.5), r"n_components is 2\.5"),
        (RidgeEncoder(GABOR, alphas=(-1.0, 1.0)), "alphas are"),
        (RidgeEncoder(GABOR, alphas=()), "alphas are"),
        (RidgeEncoder(GABOR, device="gpu"), "unknown device"),
        (OLSEncoder(GABOR, n_components=3, repetitions="all"), "type 'mean' or 'each'"),
        (BandedRidgeEncoder(GABOR, bands=[0, 30]), r"bands are \[0, 30\]"),
        (BandedRidgeEncoder(GABOR, n_weights=0), "n_weights is 0"),
        (L2LiREncoder(GABOR, alpha=-1.0), "alpha is -1"),
        (L2LiREncoder(GABOR, n_features=0), "n_features is 0"),
    ],
)
def test_bad_parameters_are_refused_before_the_backbone_runs(estimator, message, monkeypatch):
    given, responses = features_and_responses()
    cls = type(estimator)
    monkeypatch.setattr(cls, "_features", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(ModelError, match=message):
        estimator.fit(given, responses)


def test_test_images_of_the_stimuli_are_warned_of():
    given, responses = features_and_responses()
    kinds = np.array(["train"] * 70 + ["test"] * 20, dtype=object)
    marked = given.assign_coords(partition=("image", kinds)).isel(image=slice(None, None, -1))
    encoder = RidgeEncoder(GABOR, n_components=5)
    with pytest.warns(NedxWarning, match="15 of 85 images .* 'partition' of the stimuli"):
        encoder.fit(marked, responses.isel(image=slice(85)))


def test_units_are_compared_for_arrays_of_features():
    given, responses = features_and_responses()
    encoder = RidgeEncoder(GABOR, n_components=5).fit(given, responses)
    volts = responses.assign(response=responses.response.assign_attrs(units="V"))
    assert encoder.score(given.features.values, responses) > 0.5
    with pytest.raises(ModelError, match="units"):
        encoder.score(given.features.values, volts)


def test_targets_without_r_are_warned_of():
    given, responses = features_and_responses()
    train, test = slice(0, 70), slice(70, 90)
    encoder = RidgeEncoder(GABOR, n_components=5)
    encoder.fit(given.isel(image=train), responses.isel(image=train))
    values = responses.response.values[test].copy()
    values[3, :, 1] = np.nan
    held = with_values(responses.isel(image=test), "response", values)
    with pytest.warns(NedxWarning, match="1 of 4 targets have no r and count as 0"):
        encoder.score(given.isel(image=test), held)
    with pytest.warns(NedxWarning, match="1 of 4 targets have no r and count as 0"):
        encoder.score(given.features.values[test], values.mean(1))


@pytest.mark.parametrize(
    "estimator",
    [
        RidgeEncoder(GABOR, n_components=5),
        OLSEncoder(GABOR, n_components=5),
        BandedRidgeEncoder(GABOR, n_components=5, n_weights=2),
        L2LiREncoder(GABOR, n_components=5, n_features=3),
    ],
)
def test_faults_of_streamed_responses_are_named(estimator, monkeypatch):
    monkeypatch.setattr(base, "HELD_BYTES", 0)
    given, responses = features_and_responses()
    values = responses.response.values.copy()
    values[:, :, 1] = 3
    with pytest.warns(NedxWarning, match="1 of 4 targets are constant .* channel O1"):
        estimator.fit(given, with_values(responses, "response", values).chunk(image=30))
    values[44, :, 2] = np.nan
    with pytest.raises(ModelError, match=r"NaN or infinity, first in (samples|images) \[44\]"):
        estimator.fit(given, with_values(responses, "response", values).chunk(image=30))


def test_features_to_choose_among_are_checked():
    given, responses = features_and_responses()
    encoder = L2LiREncoder(GABOR, n_components=None, n_features=3)
    values = given.features.values.copy()
    values[7, 3] = np.nan
    with pytest.raises(ModelError, match=r"NaN or infinity for 1 of 90 images, first \[7\]"):
        encoder.fit(with_values(given, "features", values).chunk(image=30), responses)
    still = with_values(given, "features", np.ones_like(values)).chunk(image=30)
    with pytest.raises(ModelError, match="all 30 features are constant"):
        encoder.fit(still, responses)


def test_one_subject_of_a_grid_is_scored_alone():
    given, responses = features_and_responses()
    other = with_values(responses, "response", features_and_responses(seed=1)[1].response.values)
    both = xr.concat([responses, other], xr.IndexVariable("subject", ["sub-01", "sub-02"]))
    train, test = slice(0, 70), slice(70, 90)
    encoder = RidgeEncoder(GABOR, n_components=5)
    encoder.fit(given.isel(image=train), both.isel(image=train))
    held = both.isel(image=test)
    together = encoder.evaluate(given, held).accuracy.transpose("subject", "channel").values
    for i in range(2):
        alone = encoder.evaluate(given, held.isel(subject=i)).accuracy
        np.testing.assert_allclose(alone.values, together[i], atol=1e-6)
