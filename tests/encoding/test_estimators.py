"""Estimators of encoding models: against scikit-learn and numpy, and on simulated recordings."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from sklearn.utils.estimator_checks import parametrize_with_checks

import nedx
from nedx.encoding.estimators import BandedRidgeEncoder, L2LiREncoder, OLSEncoder, RidgeEncoder
from nedx.errors import ModelError, NedxWarning
from nedx.linear.design import Design
from tests.encoding.truth import GABOR, stimuli
from tests.laziness import computes_at_most

_NAMED = "the arguments are called stimuli and responses: most are labelled, not arrays X and y"


def _failures(estimator):
    return dict.fromkeys(("check_fit_score_takes_y", "check_n_features_in_after_fitting"), _NAMED)


@parametrize_with_checks(
    [
        RidgeEncoder(GABOR, n_components=2, cv=3),
        OLSEncoder(GABOR, n_components=2),
        BandedRidgeEncoder(GABOR, n_components=2, cv=3, n_weights=2),
        L2LiREncoder(GABOR, n_components=2),
    ],
    expected_failed_checks=_failures,
)
@pytest.mark.filterwarnings("ignore::nedx.errors.NedxWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def features_and_responses(images=90, width=30, targets=4, seed=0, **attrs):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(images, 5))
    features = hidden @ rng.normal(size=(5, width)) + 0.1 * rng.normal(size=(images, width))
    signal = hidden @ rng.normal(size=(5, targets))
    ids = np.array([f"set:{i:03d}" for i in range(images)], dtype=object)
    given = xr.Dataset(
        {"features": (("image", "feature"), features.astype(np.float32))},
        {"image_id": ("image", ids)},
    )
    response = signal[:, None] + rng.normal(size=(images, 3, targets))
    attrs = {"units": "uV", "source": "synthetic", **attrs}
    responses = xr.Dataset(
        {"response": (("image", "repetition", "channel"), response.astype(np.float32), attrs)},
        {
            "image_id": ("image", ids),
            "repetition": np.arange(3, dtype=np.int16),
            "channel": np.array(["Oz", "O1", "O2", "Pz"][:targets], dtype=object),
        },
        {"dataset": "toy", "modality": "eeg", "license": "CC0-1.0"},
    )
    return given, responses


def least_squares(x, y):
    """Standardise, rotate, fit: rotation changes no prediction, so numpy's lstsq is the truth."""
    mean, scale = x.mean(0), x.std(0)
    u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)

    def predict(new, count):
        basis = vt[:count].T
        design = np.column_stack([((x - mean) / scale) @ basis, np.ones(len(x))])
        weights = np.linalg.lstsq(design, y.reshape(len(y), -1), rcond=None)[0]
        new = np.column_stack([((new - mean) / scale) @ basis, np.ones(len(new))])
        return (new @ weights).reshape(len(new), *y.shape[1:])

    return predict


def test_least_squares_fits_each_repetition_on_its_own(tmp_path):
    """The published recipe: predictions have a repetition axis, each of its own regression."""
    given, responses = features_and_responses()
    train, test = slice(0, 70), slice(70, 90)
    encoder = OLSEncoder(GABOR, n_components=6, repetitions="each")
    encoder.fit(given.isel(image=train), responses.isel(image=train))
    x = given.features.values.astype(float)
    predict = least_squares(x[:70], responses.response.values[:70].astype(float))
    predicted = given.isel(image=test).ned.encode(encoder)
    assert predicted.response.dims == ("image", "repetition", "channel")
    np.testing.assert_allclose(predicted.response.values, predict(x[70:], 6), atol=2e-4)
    assert predicted.response.attrs["units"] == "uV"
    encoder.to_zarr(tmp_path / "ols.zarr")
    again = given.isel(image=test).ned.encode(nedx.load_model(tmp_path / "ols.zarr"))
    np.testing.assert_array_equal(again.response.values, predicted.response.values)
    scored = encoder.evaluate(given.isel(image=test), responses.isel(image=test))
    mean = responses.response.values[70:].mean(1)
    r = [np.corrcoef(predict(x[70:], 6).mean(1)[:, i], mean[:, i])[0, 1] for i in range(4)]
    np.testing.assert_allclose(scored.accuracy.values, r, atol=1e-4)


def test_least_squares_refuses_as_many_components_as_images():
    given, responses = features_and_responses()
    few = slice(0, 7)
    with pytest.raises(ModelError, match="6 components fit 7 images without any error"):
        OLSEncoder(GABOR, n_components=6).fit(given.isel(image=few), responses.isel(image=few))
    with pytest.warns(NedxWarning, match="30 components cannot be found in 20 images, 19 are"):
        RidgeEncoder(GABOR, n_components=300, alphas=(10.0,)).fit(
            given.isel(image=slice(20)), responses.isel(image=slice(20))
        )
    with pytest.raises(ModelError, match="needs the dim 'repetition'"):
        OLSEncoder(GABOR, n_components=2, repetitions="each").fit(
            given, responses.isel(repetition=0, drop=True)
        )


def test_subjects_who_saw_the_same_images_share_one_decomposition(monkeypatch):
    given, responses = features_and_responses()
    _, other = features_and_responses(seed=1, targets=2)
    decomposed = []

    class Counted(Design):
        def __init__(self, *arguments, **options):
            decomposed.append(1)
            super().__init__(*arguments, **options)

    monkeypatch.setattr("nedx.linear.ridge.Design", Counted)
    settings = {"n_components": 6, "alphas": (0.1, 1.0, 10.0, 100.0)}
    tree = xr.DataTree.from_dict({"/sub-01": responses, "/sub-02": other})
    together = RidgeEncoder(GABOR, **settings).fit(given, tree)
    assert len(decomposed) == 1
    new = given.assign_coords(image_id=("image", [f"new:{i}" for i in range(90)]))
    for name, alone in (("sub-01", responses), ("sub-02", other)):
        expected = RidgeEncoder(GABOR, **settings).fit(given, alone)
        np.testing.assert_array_equal(together.alpha_[name], expected.alpha_)
        np.testing.assert_allclose(together.cv_score_[name], expected.cv_score_, atol=1e-5)
        predicted = together.predict(new)[name].response.values
        np.testing.assert_allclose(predicted, expected.predict(new).response.values, atol=1e-4)


def test_subjects_with_voxels_of_their_own_share_one_projection(tmp_path):
    """Each subject is fitted as it would be with the same components alone, in its own order."""
    given, responses = features_and_responses()
    _, other = features_and_responses(seed=1, targets=2)
    order = np.random.default_rng(3).permutation(90)
    tree = xr.DataTree.from_dict({"/sub-01": responses, "/sub-02": other.isel(image=order)})
    encoder = RidgeEncoder(GABOR, n_components=6, alphas=(10.0,)).fit(given, tree)
    assert set(encoder.alpha_) == {"sub-01", "sub-02"}
    assert encoder.alpha_["sub-02"].shape == (2,)
    assert encoder.model_.subjects == ("sub-01", "sub-02")
    encoder.to_zarr(tmp_path / "both.zarr")
    alone = RidgeEncoder(GABOR, n_components=6, alphas=(10.0,), cv=3).fit(given, other)
    new, _ = features_and_responses(seed=7)
    new["image_id"] = ("image", np.array([f"new:{i}" for i in range(90)], dtype=object))
    together = new.ned.encode(nedx.load_model(tmp_path / "both.zarr"))
    np.testing.assert_allclose(
        together["sub-02"].response.values, alone.predict(new).response.values, atol=1e-5
    )
    with pytest.raises(ModelError, match="no array holds"):
        encoder.predict(new.features.values)


def test_lazy_responses_are_read_once():
    given, responses = features_and_responses()
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    lazy = responses.chunk({"image": 30, "channel": 2, "repetition": -1})
    lazy["response"] = lazy.response.copy(
        data=lazy.response.data.map_blocks(read, dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))
    )
    whole = RidgeEncoder(GABOR, n_components=5).fit(given, responses)
    streamed = RidgeEncoder(GABOR, n_components=5).fit(given, lazy)
    assert len([shape for shape in reads if 0 not in shape]) == 6
    x = given.features.values
    np.testing.assert_allclose(streamed.predict(x), whole.predict(x), atol=1e-5)


def test_models_say_what_they_were_fitted_to(tmp_path):
    given, responses = features_and_responses()
    encoder = RidgeEncoder(GABOR, n_components=5).fit(given, responses.isel(image=slice(60)))
    recipe = encoder.model_.recipe
    assert recipe.training_data.startswith("60 images (sha256 of their sorted ids: ")
    assert (recipe.license, recipe.units, recipe.modality) == ("CC0-1.0", "uV", "eeg")
    encoder.to_zarr(tmp_path / "model.zarr")
    model = nedx.load_model(tmp_path / "model.zarr")
    seen = given.ned.encode(model).partition.values
    assert (seen[:60] == "train").all()
    assert (seen[60:] == "unseen").all()


def test_scores_are_pearsons_r_beside_the_ceiling():
    given, responses = features_and_responses()
    train, test = slice(0, 70), slice(70, 90)
    encoder = RidgeEncoder(GABOR, n_components=5).fit(given, responses.isel(image=train))
    held = responses.isel(image=test)
    scored = encoder.evaluate(given, held)
    predicted = encoder.predict(given.features.values[70:])
    mean = held.response.values.mean(1)
    r = [np.corrcoef(predicted[:, i], mean[:, i])[0, 1] for i in range(4)]
    np.testing.assert_allclose(scored.accuracy.values, r, atol=1e-4)
    assert encoder.score(given, held) == pytest.approx(np.mean(r), abs=1e-4)
    assert encoder.score(given.features.values[70:], mean) == pytest.approx(np.mean(r), abs=1e-4)
    noise = held.response.values.var(1, ddof=1).mean(0)
    total = held.response.values.reshape(60, 4).var(0, ddof=1)
    signal = total - noise
    np.testing.assert_allclose(scored.noise_ceiling, signal / (signal + noise / 3), atol=1e-4)
    trials = held.stack(trial=("image", "repetition"), create_index=False).transpose("trial", ...)
    trials = trials.drop_vars("repetition").isel(trial=np.random.default_rng(0).permutation(60))
    by_trial = encoder.evaluate(given, trials)
    np.testing.assert_allclose(by_trial.accuracy.values, r, atol=1e-4)


def test_pixels_and_their_features_give_the_same_model():
    """The recipe of given features is kept, so that the model takes pixels as well."""
    images = stimuli(24)
    rng = np.random.default_rng(0)
    responses = xr.Dataset(
        {"response": (("image", "unit"), rng.normal(size=(24, 3)))},
        {"image_id": images.image_id, "unit": np.arange(3)},
    )
    features = nedx.encode_features(images, GABOR).drop_vars("pixels")
    encoders = [
        RidgeEncoder(GABOR, n_components=8, cv=3).fit(given, responses)
        for given in (images, features)
    ]
    new = stimuli(6, seed=9)
    new["image_id"] = ("image", np.array([f"new:{i}" for i in range(6)], dtype=object))
    first, second = (encoder.predict(new).response.values for encoder in encoders)
    np.testing.assert_allclose(first, second, atol=1e-6)
    other = GABOR.model_copy(update={"pooling": "avg4"})
    with pytest.raises(ModelError, match="these features were made by"):
        RidgeEncoder(other, n_components=8).fit(features, responses)


def with_values(ds, name, values):
    return ds.assign({name: ds[name].copy(data=values)})


def test_bad_values_are_refused_before_the_backbone_runs():
    given, responses = features_and_responses()
    broken = responses.response.values.copy()
    broken[4, :, 2] = np.nan
    with pytest.raises(
        ModelError, match=r"NaN or infinity for 1 of 90 images, first \['set:004'\]"
    ):
        RidgeEncoder(GABOR).fit(given, with_values(responses, "response", broken))
    broken[4, :, 2] = np.inf
    with pytest.raises(ModelError, match="NaN or infinity"):
        RidgeEncoder(GABOR).fit(given, with_values(responses, "response", broken))
    still = responses.response.values.copy()
    still[:, :, 1] = 3
    with pytest.warns(NedxWarning, match="1 of 4 targets are constant .* channel O1"):
        encoder = RidgeEncoder(GABOR, n_components=4).fit(
            given, with_values(responses, "response", still)
        )
    np.testing.assert_allclose(encoder.predict(given.features.values)[:, 1], 3, atol=1e-5)
    values = given.features.values.copy()
    values[7, 3] = np.inf
    with pytest.raises(ModelError, match=r"features hold NaN or infinity .* \['set:007'\]"):
        RidgeEncoder(GABOR).fit(with_values(given, "features", values), responses)
    with pytest.raises(ModelError, match="all 30 features are constant"):
        RidgeEncoder(GABOR).fit(with_values(given, "features", np.ones_like(values)), responses)


def test_one_missing_repetition_is_left_out_of_the_mean():
    given, responses = features_and_responses()
    ragged = responses.response.values.copy()
    ragged[10, 2] = np.nan
    encoder = RidgeEncoder(GABOR, n_components=4, alphas=(1.0,))
    found = encoder.fit(given, with_values(responses, "response", ragged))
    mean = np.nanmean(ragged.astype(float), axis=1)
    expected = RidgeEncoder(GABOR, n_components=4, alphas=(1.0,)).fit(given.features.values, mean)
    np.testing.assert_allclose(
        found.predict(given.features.values), expected.predict(given.features.values), atol=1e-5
    )


def test_mismatched_labels_are_refused():
    given, responses = features_and_responses()
    renamed = responses.assign_coords(
        image_id=("image", np.array([f"set_{i:03d}" for i in range(90)], dtype=object))
    )
    with pytest.raises(ModelError, match=r"90 of 90 images .* 'set_000'; did you mean 'set:000'"):
        RidgeEncoder(GABOR).fit(given, renamed)
    with pytest.raises(ModelError, match="90 rows of features, 80 of responses"):
        RidgeEncoder(GABOR).fit(given.drop_vars("image_id"), responses.isel(image=slice(80)))
    twice = given.isel(image=[0, 0, *range(1, 90)])
    with pytest.raises(ModelError, match="several of the stimuli are called 'set:000'"):
        RidgeEncoder(GABOR).fit(twice, responses)
    volts = responses.copy()
    volts["response"] = volts.response.assign_attrs(units="V")
    tree = xr.DataTree.from_dict({"/sub-01": responses, "/sub-02": volts})
    with pytest.raises(ModelError, match=r"sub-02 and sub-01 differ in units \('uV' and 'V'\)"):
        RidgeEncoder(GABOR).fit(given, tree)


def test_test_images_are_kept_apart():
    given, responses = features_and_responses()
    kinds = np.array(["train"] * 70 + ["test"] * 20, dtype=object)
    marked = responses.assign_coords(partition=("image", kinds))
    with pytest.warns(NedxWarning, match="20 of 90 images to fit to are of the partition 'test'"):
        RidgeEncoder(GABOR, n_components=5).fit(given, marked)
    train = marked.isel(image=(marked.partition == "train").values)
    encoder = RidgeEncoder(GABOR, n_components=5).fit(given, train)
    with pytest.warns(NedxWarning, match="used in training"):
        encoder.score(given, marked.isel(image=slice(60, 90)))
    held = marked.isel(image=slice(70, 90))
    other = held.assign(response=held.response.assign_attrs(normalization="zscore"))
    with pytest.raises(ModelError, match=r"normalization \(None and 'zscore'\)"):
        encoder.score(given, other)


def test_folds_keep_groups_whole():
    """Every image has a near-copy in its group, so only folds of whole groups show overfitting."""
    given, responses = features_and_responses()
    group = np.arange(90) % 9
    named = responses.assign_coords(category=("image", group))
    encoder = RidgeEncoder(GABOR, n_components=20, groups="category", cv=3).fit(given, named)
    folds = np.empty(90, int)
    from sklearn.model_selection import GroupKFold

    for fold, (_, held) in enumerate(GroupKFold(3).split(folds, groups=group)):
        folds[held] = fold
    by_hand = RidgeEncoder(GABOR, n_components=20, cv=folds).fit(given, responses)
    np.testing.assert_allclose(encoder.cv_score_, by_hand.cv_score_, atol=1e-6)
    lazy = named.assign(response=named.response.variable.chunk({"image": 30}))
    with computes_at_most(0), pytest.raises(ModelError, match="9 groups are split across folds"):
        RidgeEncoder(GABOR, groups="category", cv=np.arange(90) // 30).fit(given, lazy)
    with pytest.raises(ModelError, match="no coordinate 'session'"):
        RidgeEncoder(GABOR, groups="session").fit(given, named)


def test_bands_are_weighed_for_each_target(tmp_path):
    """One band drives the first target, the other the second; the rest is noise to each."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 40)).astype(np.float32)
    signal = np.stack([x[:, :10] @ rng.normal(size=10), x[:, 10:] @ rng.normal(size=30)], 1)
    y = signal + 2 * rng.normal(size=signal.shape)
    alphas = tuple(10.0 ** np.arange(-1, 5))
    banded = BandedRidgeEncoder(GABOR, bands=(10, 30), alphas=alphas, n_components=30)
    banded.fit(x[:120], y[:120])
    assert banded.penalty_.shape == (2, 2)
    assert banded.penalty_[0, 0] < banded.penalty_[1, 0]
    assert banded.penalty_[0, 1] > banded.penalty_[1, 1]
    plain = RidgeEncoder(GABOR, alphas=alphas, n_components=40).fit(x[:120], y[:120])
    assert banded.score(x[120:], y[120:]) > plain.score(x[120:], y[120:])
    # With these penalties the weights are those of ridge on features scaled band by band.
    penalty = np.repeat(banded.penalty_[:, 0], (10, 30))
    z = (x[:120] - x[:120].mean(0)) / x[:120].std(0)
    z = z.astype(float)
    coef = np.linalg.solve(z.T @ z + np.diag(penalty), z.T @ (y[:120, 0] - y[:120, 0].mean()))
    new = (x[120:] - x[:120].mean(0)) / x[:120].std(0)
    expected = new @ coef + y[:120, 0].mean()
    np.testing.assert_allclose(banded.predict(x[120:])[:, 0], expected, atol=1e-3)
    with pytest.raises(ModelError, match=r"bands of \[10, 20\] features were given for 40"):
        BandedRidgeEncoder(GABOR, bands=(10, 20), n_components=5).fit(x, y)


def test_a_band_is_a_layer(tmp_path):
    images = stimuli(24)
    rng = np.random.default_rng(0)
    responses = xr.Dataset(
        {"response": (("image", "unit"), rng.normal(size=(24, 3)))},
        {"image_id": images.image_id, "unit": np.arange(3)},
    )
    encoder = BandedRidgeEncoder(
        GABOR, n_components=4, cv=3, alphas=(1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
    )
    with warnings.catch_warnings():
        # Responses are noise: the best penalty is as large as may be.
        warnings.simplefilter("ignore", NedxWarning)
        encoder.fit(images, responses)
    assert encoder.penalty_.shape == (3, 3)
    model = encoder.model_
    assert list(model.layer_widths) == list(GABOR.layers)
    blocks = model.weights["projection"].values
    edges = np.cumsum([0, *model.layer_widths.values()])
    for band in range(3):
        outside = np.ones(len(blocks), bool)
        outside[edges[band] : edges[band + 1]] = False
        assert not blocks[outside][:, 4 * band : 4 * band + 4].any()
    encoder.to_zarr(tmp_path / "banded.zarr")
    new = stimuli(6, seed=9)
    new["image_id"] = ("image", np.array([f"new:{i}" for i in range(6)], dtype=object))
    again = new.ned.encode(nedx.load_model(tmp_path / "banded.zarr")).response.values
    np.testing.assert_allclose(again, encoder.predict(new).response.values, atol=1e-6)


def test_responses_too_large_to_hold_are_streamed_while_they_are_fitted(monkeypatch):
    given, responses = features_and_responses()
    whole = RidgeEncoder(GABOR, n_components=5).fit(given, responses)
    monkeypatch.setattr("nedx.encoding.estimators.base.HELD_BYTES", 0)
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    lazy = responses.chunk({"image": 30, "channel": 2, "repetition": -1})
    data = lazy.response.data.map_blocks(read, dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))
    lazy["response"] = lazy.response.copy(data=data)
    streamed = RidgeEncoder(GABOR, n_components=5).fit(given, lazy)
    assert len([shape for shape in reads if 0 not in shape]) == 6
    x = given.features.values
    np.testing.assert_allclose(streamed.predict(x), whole.predict(x), atol=1e-5)
    broken = responses.response.values.copy()
    broken[4, :, 2] = np.nan
    lazy = with_values(responses, "response", broken).chunk({"image": 30})
    with pytest.raises(ModelError, match=r"responses hold NaN or infinity, first in samples \[4\]"):
        RidgeEncoder(GABOR, n_components=5).fit(given, lazy)


def test_the_best_correlated_features_are_chosen_for_each_target():
    """The plain algorithm, target by target, on standardised features and responses."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, size=(80, 30))
    y = x[:, :4] @ rng.normal(size=(4, 3)) + rng.normal(size=(80, 3)) + 10
    encoder = L2LiREncoder(GABOR, n_components=None, n_features=5, alpha=20.0).fit(x, y)
    z, t = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    new = rng.normal(3, 2, size=(10, 30))
    expected = np.empty((10, 3))
    for target in range(3):
        r = z.T @ t[:, target]
        best = np.argsort(-np.abs(r))[:5]
        design = np.column_stack([z[:, best], np.ones(80)])
        weights = np.linalg.solve(design.T @ design + 20 * np.eye(6), design.T @ t[:, target])
        applied = np.column_stack([((new - x.mean(0)) / x.std(0))[:, best], np.ones(10)])
        expected[:, target] = applied @ weights * y.std(0)[target] + y.mean(0)[target]
    np.testing.assert_allclose(encoder.predict(new), expected, atol=1e-4)
    among = L2LiREncoder(GABOR, n_components=12, n_features=12, alpha=20.0).fit(x, y)
    ridge = RidgeEncoder(GABOR, n_components=12, alphas=(1e-6,)).fit(x, y)
    assert np.linalg.norm(among.predict(new) - y.mean(0)) < np.linalg.norm(
        ridge.predict(new) - y.mean(0)
    )
    with pytest.raises(ModelError, match="20001 features are too many to choose among"):
        L2LiREncoder(GABOR, n_components=None).fit(np.eye(3, 20_001), y[:3])
