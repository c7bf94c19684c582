"""FeatureDecoder against the published procedure and simulated brains.

``feature_decoding.npz`` is made by ``tests/oracles/make_l2lir.py``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from fastl2lir import FastL2LiR
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
from nedx.backbones.recipe import BackboneRecipe
from nedx.decoding.feature_decoder_layers import layer_shapes
from nedx.errors import ModelError, SelectionError, StoreExistsError
from tests.decoding.feature_study import IMAGES, SHAPES, VOXELS, names, responses, stimuli
from tests.laziness import computes_at_most

GOLDEN = np.load(Path(__file__).parents[1] / "oracles" / "feature_decoding.npz")


@pytest.fixture(scope="module")
def factors():
    return np.random.default_rng(9).standard_normal((IMAGES, 6))


@pytest.fixture(scope="module")
def fitted(factors):
    decoder = nedx.FeatureDecoder(roi=["V1", "V2"], n_voxels=10, alpha=1.0, device="cpu")
    return decoder.fit(stimuli(factors), responses(factors))


def golden():
    """Return features, responses to fit to, and responses to decode."""
    shape = GOLDEN["feature"].shape[1:]
    dims = ("image", "conv_channel", "conv_y", "conv_x")
    features = xr.Dataset(
        {"feature_conv": (dims, GOLDEN["feature"])},
        {"image_id": ("image", names(len(GOLDEN["feature"])))},
    )
    assert shape == (3, 2, 2)
    made = [
        xr.Dataset(
            {
                "response": (
                    ("trial", "voxel"),
                    GOLDEN[f"{part}response"],
                    {"units": "percent", "normalization": "none"},
                )
            },
            {
                "image_id": ("trial", names(99, word)[GOLDEN[f"{part}label"]]),
                "voxel": np.arange(30, dtype=np.int32),
            },
            {"modality": "fmri", "source": "synthetic", "stimulus_type": "image"},
        ).assign_attrs(subject_ids=["sub-01"])
        for part, word in (("", "set"), ("test_", "test"))
    ]
    return features, *made


def test_the_published_procedure():
    """Normalisation, selection, decoding of means and of single trials."""
    features, train, test = golden()
    decoder = nedx.FeatureDecoder(
        n_voxels=int(GOLDEN["n_feat"]), alpha=float(GOLDEN["alpha"]), device="cpu"
    ).fit(features, train)
    trials = test.ned.decode(decoder)["feature_conv"]
    np.testing.assert_allclose(trials, GOLDEN["decoded_trials"], atol=2e-5)
    means = test.ned.decode(decoder, average="image_id")["feature_conv"].sortby("image_id")
    assert means.dims == ("image", "conv_channel", "conv_y", "conv_x")
    np.testing.assert_allclose(means, GOLDEN["decoded"], atol=2e-5)


def test_decoding_a_simulated_brain(factors):
    """A brain that mixes the factors linearly is decoded almost without fault."""
    decoder = nedx.FeatureDecoder(n_voxels=25, alpha=1.0).fit(
        stimuli(factors[:30]), responses(factors[:30])
    )
    decoded = decoder.predict(responses(factors).ned.average_repetitions())
    true = stimuli(factors)
    unseen = decoded.isel(image=(decoded["partition"] == "unseen").values)
    assert unseen.sizes["image"] == 10
    assert float(nedx.pattern_correlation(true, unseen).mean()) > 0.9


def test_rois_are_decoders_of_their_own(factors, fitted):
    decoded = responses(factors).ned.decode(fitted)
    assert decoded["feature_conv"].dims == ("roi", "trial", "conv_channel", "conv_y", "conv_x")
    assert decoded["roi"].values.tolist() == ["V1", "V2"]
    for roi, some in (("V1", slice(0, 20)), ("V2", slice(15, None))):
        alone = responses(factors).isel(voxel=some).drop_vars(["roi_mask", "roi"])
        other = nedx.FeatureDecoder(n_voxels=10, alpha=1.0).fit(stimuli(factors), alone)
        expected = alone.ned.decode(other)["feature_fc"].values
        np.testing.assert_allclose(decoded["feature_fc"].sel(roi=roi), expected, atol=1e-5)
        one = responses(factors).ned.decode(fitted.model_.sel(roi=roi))["feature_fc"]
        assert one.dims == ("trial", "fc_unit")
        assert one["roi"].item() == roi
        np.testing.assert_array_equal(one, decoded["feature_fc"].sel(roi=roi))


def test_a_stored_decoder_decodes_the_same(factors, fitted, tmp_path):
    place = fitted.to_zarr(tmp_path / "decoder.zarr")
    model = nedx.load_model(place)
    assert nedx.verify(str(place.url)).ok
    ds = responses(factors)
    expected, found = ds.ned.decode(fitted), ds.ned.decode(str(tmp_path / "decoder.zarr"))
    for layer in SHAPES:
        np.testing.assert_array_equal(found[f"feature_{layer}"], expected[f"feature_{layer}"])
    assert model.weights_sha256 == fitted.model_.weights_sha256
    weights = model.weights("conv", roi="V2")
    assert weights["index"].dtype == np.int32
    assert weights["weight"].dtype == np.float32
    assert weights["weight"].shape == (36, 10)
    assert (np.diff(weights["index"].values, axis=1) > 0).all()
    assert weights["position"].values.tolist() == list(range(15, 50))
    with pytest.raises(StoreExistsError):
        model.to_zarr(tmp_path / "decoder.zarr")
    with pytest.raises(SelectionError, match="give roi=, one of: V1, V2"):
        model.weights("conv")


def test_a_part_is_stored_alone(factors, fitted, tmp_path):
    fitted.model_.sel(roi="V1", layer="fc").to_zarr(tmp_path / "part.zarr")
    part = nedx.load_model(tmp_path / "part.zarr")
    decoded = responses(factors).ned.decode(part)
    assert [name for name in decoded if name.startswith("feature_")] == ["feature_fc"]
    expected = responses(factors).ned.decode(fitted)["feature_fc"].sel(roi="V1")
    np.testing.assert_array_equal(decoded["feature_fc"], expected)


def test_nothing_is_computed_when_called_and_the_rest_is_not_read(factors, fitted, tmp_path):
    fitted.model_.to_zarr(tmp_path / "decoder.zarr")
    # Weights that are not asked for need not be there.
    shutil.rmtree(tmp_path / "decoder.zarr" / "sub-01" / "V2" / "conv")
    shutil.rmtree(tmp_path / "decoder.zarr" / "sub-01" / "V1")
    ds = responses(factors, chunks={"trial": 16, "voxel": 20})
    with computes_at_most(0):
        decoded = ds.ned.decode(str(tmp_path / "decoder.zarr"), average="image_id")
        some = decoded["feature_fc"].sel(roi=["V2"]).isel(image=[3, 1], fc_unit=slice(2, 4))
    assert some.values.shape == (1, 2, 2)


def test_only_the_units_that_are_selected_are_read(tmp_path):
    """Their chunk alone lies on disk."""
    rng = np.random.default_rng(0)
    features = xr.Dataset(
        {"feature_wide": (("image", "wide_unit"), rng.standard_normal((40, 2500), np.float32))},
        {"image_id": ("image", names(40))},
    )
    ds = responses(rng.standard_normal((40, 3)))
    model = nedx.FeatureDecoder(n_voxels=5).fit(features, ds).model_
    expected = ds.ned.decode(model)["feature_wide"][:7, 1500].values
    model.to_zarr(tmp_path / "wide.zarr")
    for name in ("weight", "index"):
        for chunk in (0, 2):
            (tmp_path / f"wide.zarr/sub-01/all/wide/{name}/c/{chunk}/0").unlink()
    found = ds.ned.decode(str(tmp_path / "wide.zarr"))["feature_wide"][:7, 1500].values
    np.testing.assert_array_equal(found, expected)


def test_features_that_lie_image_by_image_are_read_once(factors):
    """However little memory there is for a block of units, and for each ROI."""
    true, read = stimuli(factors), []

    def noted(block, block_info=None):
        read.append(block_info[None]["chunk-location"])
        return block

    lazy = true.chunk(image=8)
    for layer in SHAPES:
        array = lazy[f"feature_{layer}"].data.map_blocks(noted, dtype=np.float32, meta=np.empty(0))
        lazy[f"feature_{layer}"] = (true[f"feature_{layer}"].dims, array)
    rois = {"roi": ["V1", "V2"], "n_voxels": 10, "alpha": 1.0}
    small = nedx.FeatureDecoder(**rois, memory=1).fit(lazy, responses(factors)).model_
    assert len(read) == len(set(read)) == 10
    whole = nedx.FeatureDecoder(**rois).fit(true, responses(factors)).model_
    for layer in SHAPES:
        first, second = (model.weights(layer, roi="V2") for model in (small, whole))
        np.testing.assert_array_equal(first["index"], second["index"])
        np.testing.assert_allclose(first["weight"], second["weight"], atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(trial=st.integers(1, 160), voxel=st.integers(1, 50), channel=st.integers(0, 3))
def test_chunks_do_not_matter(factors, fitted, trial, voxel, channel):
    whole = responses(factors).ned.decode(fitted)["feature_conv"].values
    ds = responses(factors, chunks={"trial": trial, "voxel": voxel})
    found = ds.ned.decode(fitted)["feature_conv"][1, 5:150:7, channel]
    np.testing.assert_allclose(found, whole[1, 5:150:7, channel], atol=1e-6 * np.abs(whole).max())


def test_subjects_with_voxels_of_their_own(factors):
    tree = xr.DataTree.from_dict(
        {f"sub-{s:02d}": responses(factors, s, 40 + s).drop_attrs(deep=False) for s in (1, 2)}
    )
    decoder = nedx.FeatureDecoder(roi="V1", n_voxels=10, alpha=1.0).fit(stimuli(factors), tree)
    assert decoder.model_.subjects == ("sub-01", "sub-02")
    decoded = tree.ned.decode(decoder)
    for s in (1, 2):
        alone = nedx.FeatureDecoder(roi="V1", n_voxels=10, alpha=1.0).fit(
            stimuli(factors), responses(factors, s, 40 + s)
        )
        expected = responses(factors, s, 40 + s).ned.decode(alone)["feature_fc"].values
        np.testing.assert_array_equal(decoded[f"sub-{s:02d}"]["feature_fc"], expected)


def test_subjects_on_one_grid(factors):
    both = xr.concat(
        [responses(factors, s).sortby(["image_id"]) for s in (1, 2)],
        xr.DataArray(np.array(["sub-01", "sub-02"], dtype=object), dims="subject", name="subject"),
        data_vars=["response"],
        coords="minimal",
        compat="override",
        combine_attrs="drop_conflicts",
    )
    decoder = nedx.FeatureDecoder(n_voxels=10, alpha=1.0).fit(stimuli(factors), both)
    decoded = both.ned.decode(decoder)["feature_fc"]
    assert decoded.dims == ("subject", "trial", "fc_unit")
    one = both.isel(subject=[1])
    np.testing.assert_array_equal(one.ned.decode(decoder)["feature_fc"][0], decoded[1])
    alone = responses(factors, 2).sortby("image_id")
    expected = alone.ned.decode(decoder)["feature_fc"]
    np.testing.assert_array_equal(decoded[1], expected)


def test_repetitions_may_be_absent(factors):
    """Trials, and images with repetitions of which some are absent, are fitted alike."""
    ds = responses(factors)
    stacked = ds.ned.stack_repetitions()
    stacked["response"] = stacked["response"].where(stacked["repetition"] < 3).load()
    stacked["response"][3, 2] = np.nan
    trials = [
        (image, repetition)
        for image in range(IMAGES)
        for repetition in range(3)
        if (image, repetition) != (3, 2)
    ]
    rows = tuple(np.array(trials).T)
    flat = ds.isel(trial=slice(len(trials))).copy()
    flat["response"] = (("trial", "voxel"), stacked["response"].values[rows], ds.response.attrs)
    flat["image_id"] = ("trial", stacked["image_id"].values[rows[0]])
    kept = stacked.assign_attrs(ds.attrs)
    models = [nedx.FeatureDecoder(n_voxels=9).fit(stimuli(factors), one) for one in (flat, kept)]
    first, second = (model.model_.weights("fc") for model in models)
    np.testing.assert_array_equal(first["index"], second["index"])
    np.testing.assert_allclose(first["weight"], second["weight"], atol=1e-5)


def test_what_does_not_vary(factors):
    """A unit that does not vary is decoded as its mean; such a voxel changes nothing."""
    features, ds = stimuli(factors), responses(factors)
    features["feature_fc"][:, 3] = 7.25
    ds["response"][:, 4] = -2
    decoder = nedx.FeatureDecoder(n_voxels=10, alpha=1.0).fit(features, ds)
    weights = decoder.model_.weights("fc")
    assert not weights["weight"].values[3].any()
    assert not (weights["index"] == 4).any()
    decoded = (ds * 1).assign_attrs(ds.attrs)
    decoded["response"] = ds["response"].copy(data=ds["response"].values)
    decoded["response"][:, 4] = 99
    np.testing.assert_array_equal(decoded.ned.decode(decoder)["feature_fc"][:, 3], 7.25)
    other = ds.ned.decode(decoder)["feature_fc"]
    np.testing.assert_array_equal(decoded.ned.decode(decoder)["feature_fc"], other)


def brute_force(factors, ds, alphas, folds, exclusive=None):
    """The penalty of best correlation, all voxels, fold by fold with the authors' package."""
    y_all = stimuli(factors)["feature_fc"].values.astype(float)
    shown = np.array([int(name[-3:]) for name in ds["image_id"].values])
    x_all, totals = ds["response"].values.astype(float), dict.fromkeys(alphas, 0.0)
    for held in folds:
        out = np.isin(np.arange(len(shown)), held)
        keep = ~out & ~np.isin(shown, shown[out])
        if exclusive is not None:
            keep &= ~np.isin(exclusive, exclusive[out])
        mean, size = x_all[keep].mean(0), x_all[keep].std(0, ddof=1)
        y = y_all[np.unique(shown[keep])]
        z = ((y_all - y.mean(0)) / y.std(0, ddof=1))[shown[keep]]
        test = np.unique(shown[out])
        x = np.array([x_all[out & (shown == i)].mean(0) for i in test])
        for alpha in alphas:
            model = FastL2LiR().fit((x_all[keep] - mean) / size, z, alpha=alpha, n_feat=0)
            found = model.predict((x - mean) / size)
            r = [np.corrcoef(found[:, u], y_all[test, u])[0, 1] for u in range(y.shape[1])]
            totals[alpha] += np.mean(r)
    return max(totals, key=totals.get)


@pytest.mark.parametrize("noise", [0.5, 8.0])
def test_the_penalty_is_chosen_by_left_out_runs(factors, noise):
    alphas = (0.1, 10.0, 1_000.0, 100_000.0)
    ds = responses(factors, noise=noise)
    runs = ds["run"].values
    decoder = nedx.FeatureDecoder(
        layers=["fc"], n_voxels=VOXELS, alpha=alphas, groups="run", folds=len(np.unique(runs))
    ).fit(stimuli(factors), ds)
    folds = [np.flatnonzero(runs == run) for run in np.unique(runs)]
    expected = brute_force(factors, ds, alphas, folds)
    assert decoder.model_.recipe.alpha == {"sub-01/all/fc": expected}


def test_trials_that_share_a_category_are_not_fitted_to(factors):
    """Ten categories of four images each: leaving out only images would leave them known."""
    alphas = (0.1, 10.0, 1_000.0, 100_000.0)
    shared = np.repeat(np.random.default_rng(3).standard_normal((10, 6)), 4, axis=0) + 0.2 * factors
    ds = responses(shared, noise=4.0)
    category, runs = ds["category"].values, ds["run"].values
    ds["run"] = ("trial", runs // 5)
    decoder = nedx.FeatureDecoder(
        layers=["fc"], n_voxels=VOXELS, alpha=alphas, groups="category", exclusive="category"
    ).fit(stimuli(shared), ds)
    from sklearn.model_selection import GroupKFold

    folds = [test for _, test in GroupKFold(5).split(category, groups=category.astype(str))]
    expected = brute_force(shared, ds, alphas, folds, category)
    assert decoder.model_.recipe.alpha == {"sub-01/all/fc": expected}
    with pytest.raises(ModelError, match="leaves 0 images to fit to"):
        nedx.FeatureDecoder(layers=["fc"], alpha="cv", groups="run", exclusive="half", folds=2).fit(
            stimuli(shared), ds.assign_coords(half=("trial", np.zeros(len(runs))))
        )


def test_all_layers_of_vgg19_before_the_rectifiers():
    """Their shapes are those of the published features, 14,861,288 units in all."""
    recipe = nedx.FeatureDecoder().recipe
    pixels = xr.Dataset({"pixels": (("image", "y", "x", "rgb"), np.zeros((1, 256, 256, 3), "u1"))})
    shapes = layer_shapes(recipe, pixels)
    sizes = {1: (64, 224, 2), 2: (128, 112, 2), 3: (256, 56, 4), 4: (512, 28, 4), 5: (512, 14, 4)}
    expected = {
        f"conv{block}_{i + 1}": (channels, side, side)
        for block, (channels, side, count) in sizes.items()
        for i in range(count)
    }
    assert shapes == expected | {"fc6": (4096,), "fc7": (4096,), "fc8": (1000,)}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 14_861_288


def test_features_are_computed_of_images():
    """VGG19 runs once; conv1_1 is the convolution alone, with what a rectifier would cut off."""
    import torch

    from nedx.backbones import load_backbone

    recipe = BackboneRecipe(
        name="vgg19", layers=("conv1_1", "fc8"), policy="raw01", image_size=32, seed=1
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    images = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), pixels)}, {"image_id": ("image", names(12))}
    )
    ds = responses(rng.standard_normal((12, 3)))
    decoder = nedx.FeatureDecoder(recipe, n_voxels=5, device="cpu").fit(images, ds)
    assert decoder.model_.recipe.layers == {"conv1_1": (64, 32, 32), "fc8": (1000,)}
    assert decoder.model_.recipe.backbone == recipe
    state = load_backbone(recipe).network.state_dict()
    batch = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    weight, bias = state["features.0.weight"], state["features.0.bias"]
    true = torch.nn.functional.conv2d(batch, weight, bias, padding=1).numpy()
    assert (true < 0).any()
    mean = decoder.model_.weights("conv1_1")["feature_mean"].values
    np.testing.assert_allclose(mean, true.mean(0).ravel(), atol=1e-5)


def test_responses_for_testing_are_left_out():
    factors = np.random.default_rng(0).standard_normal((12, 3))
    ds = responses(factors)
    tested = np.isin(ds["image_id"], names(12)[::2])
    kinds = np.where(tested, "test", "train").astype(object)
    decoder = nedx.FeatureDecoder(n_voxels=5, device="cpu")
    wanted = decoder.fit(stimuli(factors), ds.isel(trial=~tested)).model_
    found = decoder.fit(stimuli(factors), ds.assign_coords(partition=("trial", kinds))).model_
    assert set(found.known["known_image"].values) == set(names(12)[1::2])
    xr.testing.assert_equal(found.weights("fc").load(), wanted.weights("fc").load())
    with pytest.raises(ModelError, match="all responses of 'sub-01' are of the partition 'test'"):
        decoder.fit(stimuli(factors), ds.assign_coords(partition=("trial", ["test"] * len(kinds))))


def test_features_of_another_image_size_than_the_recipe_says_are_refused():
    recipe = nedx.backbones.BackboneRecipe(name="vgg19", layers=("conv1_1",), image_size=32)
    pixels = np.zeros((12, 32, 32, 3), np.uint8)
    images = xr.Dataset(
        {"pixels": (("image", "y", "x", "rgb"), pixels)}, {"image_id": ("image", names(12))}
    )
    ds = responses(np.random.default_rng(0).standard_normal((12, 3)))
    wanted = "image_size=32, but its policy 'imagenet' makes these images 224 x 224"
    with pytest.raises(ModelError, match=wanted):
        nedx.FeatureDecoder(recipe, n_voxels=5, device="cpu").fit(images, ds)
    with pytest.raises(ModelError, match=wanted):
        nedx.encode_features(images, recipe)


def spoiled(factors, **changes):
    ds = responses(factors)
    return ds.assign(response=ds["response"].copy(data=ds["response"].values), **changes)


def with_nan(factors):
    ds = spoiled(factors)
    ds["response"][3, 7] = np.nan
    return ds


def with_time(factors):
    return responses(factors).expand_dims(time=[0.0], axis=-1)


def without_labels(factors):
    return responses(factors).drop_vars("image_id")


def of_others(factors):
    ds = responses(factors)
    return ds.assign_coords(image_id=("trial", names(IMAGES, "other")[np.arange(160) % 40]))


@pytest.mark.parametrize(
    ("parameters", "make", "message"),
    [
        ({}, with_nan, "1 of 160 samples of 'sub-01' hold NaN or infinity, first those of 'set:"),
        ({}, with_time, "take no dimension 'time'"),
        ({}, without_labels, "no 'image_id'"),
        (
            {},
            of_others,
            "sub-01 and the features share no image: responses are to 'other:000' and 39",
        ),
        ({"roi": "V4"}, responses, "sub-01: unknown ROI 'V4'.*V1"),
        ({"layers": ["conv9"]}, responses, "no features of the layer 'conv9'.*'conv'"),
        ({"alpha": -1.0}, responses, "alpha is -1.0; expected positive numbers"),
        ({"alpha": "auto"}, responses, "alpha is 'auto'; type a positive number"),
        ({"n_voxels": 0}, responses, "n_voxels is 0; type a whole number from 1"),
        ({"alpha": "cv", "groups": "runs"}, responses, "no label 'runs': did you mean 'run'"),
        ({"alpha": "cv", "folds": 41}, responses, "40 groups cannot fill 41 folds"),
        ({"device": "gpu"}, responses, "unknown device 'gpu'"),
    ],
)
def test_bad_input_of_fits(factors, parameters, make, message):
    with pytest.raises(ModelError, match=message):
        nedx.FeatureDecoder(**parameters).fit(stimuli(factors), make(factors))


def test_bad_features(factors):
    true, ds = stimuli(factors), responses(factors)
    decoder = nedx.FeatureDecoder(n_voxels=5)
    with pytest.raises(ModelError, match="12 of 40 images of sub-01 have no features"):
        decoder.fit(true.isel(image=slice(28)), ds)
    with pytest.raises(ModelError, match="have no 'image_id'"):
        decoder.fit(true.drop_vars("image_id"), ds)
    twice = true.assign_coords(image_id=("image", names(IMAGES)[np.arange(40) // 2]))
    with pytest.raises(ModelError, match="several features are of 'set:000'"):
        decoder.fit(twice, ds)
    with pytest.raises(ModelError, match="are a Dataset, not ndarray"):
        decoder.fit(true["feature_fc"].values, ds)
    with pytest.raises(ModelError, match="neither features nor pixels"):
        decoder.fit(ds, ds)
    true["feature_fc"][5, 2] = np.nan
    with pytest.raises(ModelError, match="features of 'fc' hold NaN"):
        decoder.fit(true, ds)
    assert not hasattr(decoder, "model_")


def test_bad_responses_to_decode(factors, fitted):
    ds = responses(factors)
    for bad, message in (
        (ds.isel(voxel=slice(30)), "30 voxels, the decoder was fitted to all 50 of sub-01"),
        (ds.rename(voxel="vertex"), "of vertexs?.*the decoder takes voxels"),
        (ds.assign_attrs(subject_ids=["sub-07"]), "of 'sub-07', the decoder was fitted to sub-01"),
        (ds.drop_vars("response"), "no 'response' to decode"),
        (with_time(factors), "no dimension 'time'"),
    ):
        with pytest.raises(ModelError, match=message):
            bad.ned.decode(fitted)
    ds["response"].attrs["units"] = "1"
    with pytest.raises(ModelError, match="units is '1', the decoder takes 'percent'"):
        ds.ned.decode(fitted)
    with pytest.raises(SelectionError, match="unknown layer 'conv9'"):
        fitted.model_.sel(layer="conv9")
    with pytest.raises(SelectionError, match="no label 'name'"):
        responses(factors).ned.decode(fitted, average="name")
    with pytest.raises(ModelError, match="not fitted yet"):
        nedx.FeatureDecoder().predict(responses(factors))
    with pytest.raises(ModelError, match="not fitted yet"):
        nedx.FeatureDecoder().to_zarr("nowhere.zarr")


def test_responses_that_are_nan_are_named_when_decoded(factors, fitted):
    ds = with_nan(factors)
    with pytest.raises((ModelError, ValueError), match="set:"):
        ds.ned.decode(fitted)["feature_fc"].compute()
