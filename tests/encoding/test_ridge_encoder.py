"""RidgeEncoder against scikit-learn's scaler, PCA and ridge, and on real recordings."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nedx.backbones import BackboneRecipe
from nedx.encoding.estimators.ridge import RidgeEncoder
from nedx.encoding.model import load_model
from nedx.errors import ModelError

RECIPE = BackboneRecipe(name="squeezenet1_1", layers=("fire6",), seed=0)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(80, 6))
    features = hidden @ rng.normal(size=(6, 40)) + 0.1 * rng.normal(size=(80, 40)) + 5
    response = hidden @ rng.normal(size=(6, 3)) + rng.normal(size=(80, 3)) + 2
    return features.astype(np.float32), response


def labelled(features, response):
    ids = np.array([f"set:{i:03d}" for i in range(len(features))], dtype=object)
    stimuli = xr.Dataset(
        {"features": (("image", "feature"), features)}, coords={"image_id": ("image", ids)}
    )
    responses = xr.Dataset(
        {"response": (("image", "unit"), response, {"units": "Hz", "source": "synthetic"})},
        coords={"image_id": ("image", ids), "unit": np.array([4, 7, 9], np.int32)},
        attrs={"dataset": "toy", "modality": "ephys"},
    )
    return stimuli, responses


def test_predictions_are_those_of_the_pipeline_of_scikit_learn(arrays):
    x, y = arrays
    encoder = RidgeEncoder(RECIPE, n_components=5, alphas=(100.0,)).fit(x[:60], y[:60])
    pipeline = make_pipeline(StandardScaler(), PCA(5, svd_solver="full"), Ridge(100.0))
    expected = pipeline.fit(x[:60].astype(float), y[:60]).predict(x[60:])
    np.testing.assert_allclose(encoder.predict(x[60:]), expected, atol=1e-4)
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(expected.T, y[60:].T, strict=True)]
    assert encoder.score(x[60:], y[60:]) == pytest.approx(np.mean(r), abs=1e-5)


def test_images_are_paired_by_name_not_by_place(arrays, tmp_path):
    x, y = arrays
    stimuli, responses = labelled(x, y)
    shuffled = np.random.default_rng(1).permutation(60)
    whole = RidgeEncoder(RECIPE, n_components=5, cv="gcv").fit(x[:60], y[:60])
    paired = RidgeEncoder(RECIPE, n_components=5, cv="gcv").fit(
        stimuli, responses.isel(image=shuffled)
    )
    np.testing.assert_allclose(paired.predict(x[60:]), whole.predict(x[60:]), atol=1e-3)
    assert paired.model_.recipe.units == "Hz"
    assert paired.model_.recipe.training_source == "synthetic"
    paired.to_zarr(tmp_path / "encoder.zarr")
    again = load_model(tmp_path / "encoder.zarr")
    np.testing.assert_array_equal(again.weights["unit"].values, [4, 7, 9])
    with pytest.raises(ModelError, match=r"20 of 80 images .* first 'set:060'"):
        RidgeEncoder(RECIPE).fit(stimuli.isel(image=slice(60)), responses)


def test_repetitions_and_trials_of_an_image_are_averaged(arrays):
    x, y = arrays
    stimuli, responses = labelled(x, y)
    noise = np.random.default_rng(2).normal(size=(80, 2, 3))
    repeated = responses.drop_vars("response").assign(
        response=(("image", "repetition", "unit"), y[:, None] + noise, {"units": "Hz"})
    )
    repeated = repeated.assign_coords(repetition=np.arange(2, dtype=np.int16))
    trials = xr.Dataset(
        {"response": (("trial", "unit"), (y[:, None] + noise).reshape(160, 3), {"units": "Hz"})},
        coords={"image_id": ("trial", np.repeat(responses["image_id"].values, 2))},
    )
    fits = [
        RidgeEncoder(RECIPE, n_components=5, cv="gcv").fit(stimuli, given).predict(x)
        for given in (responses.assign(response=repeated.response.mean("repetition")), repeated)
    ]
    np.testing.assert_allclose(fits[1], fits[0], atol=1e-5)
    by_trial = RidgeEncoder(RECIPE, n_components=5, cv="gcv").fit(stimuli, trials).predict(x)
    np.testing.assert_allclose(by_trial, fits[0], atol=1e-3)


def test_subjects_on_one_grid_share_a_projection(arrays):
    x, y = arrays
    stimuli, responses = labelled(x, y)
    both = xr.concat([responses.response, 2 * responses.response], "subject").to_dataset()
    both = both.assign_coords(subject=np.array(["sub-01", "sub-02"], dtype=object))
    encoder = RidgeEncoder(RECIPE, n_components=5, cv="gcv").fit(stimuli, both)
    assert encoder.alpha_.shape == (2, 3)
    predicted = encoder.predict(x)
    assert predicted.shape == (80, 2, 3)
    np.testing.assert_allclose(predicted[:, 1], 2 * predicted[:, 0], rtol=1e-3, atol=1e-3)
    assert encoder.model_.weights["projection"].dims == ("feature", "component")


def test_manners_of_scikit_learn():
    encoder = RidgeEncoder(RECIPE, n_components=7)
    assert clone(encoder).get_params() == encoder.get_params()
    assert encoder.set_params(cv=3) is encoder
    assert encoder.cv == 3
    with pytest.raises(ModelError, match="did you mean 'alphas'"):
        encoder.set_params(alpha=1)
    with pytest.raises(ModelError, match="not fitted"):
        encoder.predict(np.zeros((2, 3)))


def test_from_pixels_to_lazy_predictions(arrays):
    """The backbone runs inside fit; predict gives what the features by hand give."""
    import torch

    from nedx.backbones import load_backbone
    from nedx.stimuli.images import open_images
    from nedx.stimuli.preprocessing import policy, preprocess
    from tests.laziness import computes_at_most

    recipe = BackboneRecipe(
        name="gabor", layers=("energy_1", "energy_2"), policy="raw01", pooling="avg4"
    )
    pixels = np.random.default_rng(5).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    stimuli = open_images(pixels, image_set="set")
    responses = xr.Dataset(
        {"response": (("image", "unit"), arrays[1][:24], {"units": "Hz", "source": "measured"})},
        coords={"image_id": ("image", stimuli.image_id.values[:24]), "unit": np.arange(3)},
    )
    encoder = RidgeEncoder(recipe, n_components=8, cv=3).fit(stimuli, responses)
    taps = []
    load_backbone(recipe).run(
        preprocess(pixels, policy("raw01")), lambda _name, tap: taps.append(tap)
    )
    features = torch.cat(taps, 1).numpy()
    by_hand = RidgeEncoder(recipe, n_components=8, cv=3).fit(features[:24], arrays[1][:24])
    with computes_at_most(0):
        predicted = encoder.predict(stimuli)
    np.testing.assert_allclose(
        predicted.response.transpose("image", "unit").values,
        by_hand.predict(features),
        atol=1e-4,
    )
    assert predicted.response.attrs["units"] == "Hz"
