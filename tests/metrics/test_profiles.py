"""Profile and pattern correlation against numpy and scipy, one unit or image at a time."""

import dask
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
from nedx.errors import SchemaError
from nedx.metrics.profiles import (
    pattern_correlation,
    profile_correlation,
    training_statistics,
)
from nedx.schema import restore_index
from tests.laziness import computes_at_most
from tests.metrics.decoded import SHAPES, layer, layers, named


def r(a, b):
    return scipy.stats.pearsonr(a, b)[0]


def patterns(array):
    return array.values.reshape(*array.shape[:-3], -1)


def test_profiles_are_pearson_correlations_over_images():
    true, decoded = layer()
    found = profile_correlation(true, decoded)
    assert found.dims == ("subject", "unit_0", "unit_1", "unit_2")
    assert found.attrs["units"] == "1"
    for s in range(2):
        x, y = patterns(true), patterns(decoded[s])
        wanted = [r(a, b) for a, b in zip(x.T, y.T, strict=True)]
        np.testing.assert_allclose(found[s].values.ravel(), wanted, atol=1e-12)


def test_units_without_a_profile_are_nan_and_others_are_not():
    true, decoded = layer()
    true[:, 0, 0, 0] = 0.1
    decoded[0, 3, 1, 1, 1] = np.nan
    found = profile_correlation(true, decoded)
    assert np.isnan(found[:, 0, 0, 0]).all()
    assert np.isnan(found[0, 1, 1, 1])
    assert int(np.isnan(found).sum()) == 3


def test_patterns_are_pearson_correlations_over_units_that_are_finite():
    true, decoded = layer()
    true[2, 0, 0, 0] = np.nan
    decoded[1, 3, 1, 1, 1] = np.inf
    found = pattern_correlation(true, decoded)
    assert found.dims == ("subject", "image")
    for s in range(2):
        x, y = patterns(true), patterns(decoded[s])
        kept = np.isfinite(x).all(0) & np.isfinite(y).all(0)
        wanted = [r(a, b) for a, b in zip(x[:, kept], y[:, kept], strict=True)]
        np.testing.assert_allclose(found[s], wanted, atol=1e-12)
        assert (found.n_units[s] == kept.sum()).all()


def test_both_are_standardised_by_the_training_set():
    training, _ = layer(images=30, seed=5)
    true, decoded = layer()
    training[:, 0, 0, 0] = 1.0
    true = true * 100
    mean, sd = (patterns(training).mean(0), patterns(training).std(0, ddof=1))
    found = pattern_correlation(true, decoded, standardize=training_statistics(training))
    kept = sd > 0
    for s in range(2):
        x, y = ((patterns(a) - mean)[:, kept] / sd[kept] for a in (true, decoded[s]))
        np.testing.assert_allclose(
            found[s], [r(a, b) for a, b in zip(x, y, strict=True)], atol=1e-10
        )
    assert (found.n_units == kept.sum()).all()
    assert found.attrs["standardization"].startswith("training")


def test_statistics_count_every_image_once():
    training, _ = layer(images=9)
    trials = training.isel(image=[0, 0, *range(9), 3, 3]).rename(image="trial")
    for found, wanted in zip(
        training_statistics(trials.chunk(trial=4)),
        (patterns(training).mean(0), patterns(training).std(0, ddof=1)),
        strict=True,
    ):
        np.testing.assert_allclose(found.values.ravel(), wanted, atol=1e-12)


def test_images_are_joined_by_name_in_any_order_and_trials_to_theirs():
    true, decoded = layer()
    rng = np.random.default_rng(1)
    shown = rng.integers(0, 12, 20)
    trials = decoded.isel(image=shown).rename(image="trial")
    wanted = pattern_correlation(true, decoded).values
    found = pattern_correlation(true.isel(image=rng.permutation(12)), trials)
    assert found.dims == ("subject", "trial")
    np.testing.assert_allclose(found, wanted[:, shown], atol=1e-12)
    some = pattern_correlation(true, decoded.isel(image=[7, 2]))
    np.testing.assert_allclose(some, wanted[:, [7, 2]], atol=0.2)
    assert list(some.image_id.values) == ["set:07", "set:02"]
    profile = profile_correlation(true, decoded.isel(image=slice(None, None, -1)))
    np.testing.assert_allclose(profile, profile_correlation(true, decoded), atol=1e-12)


def test_layers_are_labelled():
    true, decoded = layers()
    profile, pattern = profile_correlation(true, decoded), pattern_correlation(true, decoded)
    assert profile.dims == ("subject", "unit")
    assert pattern.dims == ("layer", "subject", "image")
    assert list(pattern.layer.values) == list(SHAPES)
    for name in SHAPES:
        of_layer = profile.isel(unit=(profile.layer == name).values)
        one = true[f"feature_{name}"], decoded[f"feature_{name}"]
        wanted = profile_correlation(*one).values.reshape(2, -1)
        np.testing.assert_array_equal(of_layer, wanted)
        np.testing.assert_array_equal(of_layer.unit_index, np.arange(wanted.shape[1]))
        alone = pattern_correlation(*one)
        np.testing.assert_allclose(pattern.sel(layer=name), alone, atol=1e-12)
        assert (pattern.n_units.sel(layer=name) == np.prod(SHAPES[name])).all()
    mean = profile.groupby("layer").mean()
    assert set(mean.layer.values) == set(SHAPES)


def test_features_side_by_side_are_told_apart_by_their_layer():
    rng = np.random.default_rng(0)
    label = {"layer": ("feature", np.repeat(["a", "b"], [30, 20]))}
    true, decoded = (
        named(rng.standard_normal((9, 50)), ["image", "feature"], **label).to_dataset(
            name="features"
        )
        for _ in range(2)
    )
    found = pattern_correlation(true, decoded)
    x, y = true.features.values, decoded.features.values
    for name, units in (("a", slice(30)), ("b", slice(30, 50))):
        wanted = [r(a, b) for a, b in zip(x[:, units], y[:, units], strict=True)]
        np.testing.assert_allclose(found.sel(layer=name), wanted, atol=1e-12)
    statistics = training_statistics(true)
    standardised = pattern_correlation(true, decoded, standardize=statistics)
    assert standardised.dims == ("layer", "image")


def test_constant_patterns_have_no_correlation():
    true, decoded = layer()
    decoded[0, 4] = 0.1
    found = pattern_correlation(true, decoded.chunk(unit_2=3))
    assert np.isnan(found[0, 4])
    assert int(np.isnan(found).sum()) == 1
    decoded[1] = np.nan
    assert np.isnan(pattern_correlation(true, decoded)[1]).all()


@given(
    images=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    units=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
@settings(max_examples=15, deadline=None)
def test_any_chunking_gives_the_same(images, units):
    true, decoded = layer(images=sum(images), shape=(sum(units),))
    decoded[1, 0, 0] = np.nan
    lazy = (
        true.chunk(image=tuple(images), unit_0=3),
        decoded.chunk(image=2, unit_0=tuple(units), subject=2),
    )
    with computes_at_most(0):
        found = pattern_correlation(*lazy), profile_correlation(*lazy)
    assert all(dask.is_dask_collection(one) for one in found)
    whole = pattern_correlation(true, decoded), profile_correlation(true, decoded)
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_allclose(
            one.compute(scheduler="sync"), other.compute(scheduler="sync"), atol=1e-9
        )


def test_stores_are_read_when_asked_whether_chunked_or_not(tmp_path):
    true, decoded = layers()
    wanted = pattern_correlation(true, decoded).drop_vars("subject")
    for name, ds in (("true", true), ("decoded", decoded)):
        labelled = ds.drop_indexes("image_id").drop_vars("subject", errors="ignore")
        labelled.to_zarr(tmp_path / name, consolidated=False)
    for chunks in (None, {}):
        opened = [
            restore_index(xr.open_zarr(tmp_path / name, chunks=chunks, consolidated=False))
            for name in ("true", "decoded")
        ]
        with computes_at_most(0):
            found = pattern_correlation(*opened)
        assert not any(ds[f"feature_{name}"]._in_memory for ds in opened for name in SHAPES)
        # A store does not keep the order of variables.
        found = found.sel(layer=list(SHAPES)).compute()
        xr.testing.assert_allclose(found, wanted.compute())


@pytest.mark.parametrize("dtype", ["f2", "f4", "i4"])
def test_any_dtype_is_compared_as_exactly_as_it_is_held(dtype):
    true, decoded = (array.astype(dtype) for array in (4 * array for array in layer()))
    found = pattern_correlation(true, decoded), profile_correlation(true, decoded)
    x, y = (patterns(array).astype("f8") for array in (true, decoded))
    wanted = [[r(a, b) for a, b in zip(x, s, strict=True)] for s in y]
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)
    wanted = [[r(a, b) for a, b in zip(x.T, s.T, strict=True)] for s in y]
    np.testing.assert_allclose(found[1].values.reshape(2, -1), wanted, atol=1e-6)
    assert all(one.dtype == np.float64 for one in found)


def test_what_does_not_fit_is_named():
    true, decoded = layer()
    both = layers()
    with pytest.raises(SchemaError, match="2 predicted images are not true, for example set:00"):
        pattern_correlation(true.isel(image=slice(2, None)), decoded)
    with pytest.raises(
        SchemaError, match="1 rows are of an image that is there already, such as set:00"
    ):
        profile_correlation(true.isel(image=[0, 0, *range(1, 12)]), decoded)
    with pytest.raises(SchemaError, match="no image_id on what is true"):
        profile_correlation(true.drop_vars("image_id"), decoded)
    with pytest.raises(SchemaError, match="3 true and 2 predicted along 'unit_0'"):
        profile_correlation(true, decoded.isel(unit_0=slice(2)))
    with pytest.raises(SchemaError, match="labels differ"):
        pattern_correlation(
            *(a.assign_coords(unit_0=np.arange(3) + i) for i, a in enumerate((true, decoded)))
        )
    with pytest.raises(SchemaError, match="layer 'fc6' is predicted.*no true features of it"):
        profile_correlation(both[0].drop_vars("feature_fc6"), both[1])
    with pytest.raises(SchemaError, match="found ndarray, expected a DataArray or a Dataset"):
        pattern_correlation(true.values, decoded.values)
    with pytest.raises(SchemaError, match="one image only"):
        profile_correlation(true, decoded.isel(image=[3]))
    with pytest.raises(SchemaError, match="no image was selected"):
        pattern_correlation(true, decoded.isel(image=[]))
    with pytest.raises(SchemaError, match="no units"):
        pattern_correlation(true, decoded.rename(unit_0="a", unit_1="b", unit_2="c"))
    with pytest.raises(SchemaError, match="one array is compared with the layers conv1, fc6"):
        pattern_correlation(both[0], decoded)
    with pytest.raises(SchemaError, match="no variables feature_<layer>"):
        pattern_correlation(xr.Dataset({"pixels": true}), decoded)
    statistics = training_statistics(true.isel(unit_0=slice(2)))
    with pytest.raises(SchemaError, match="the mean has 2 along 'unit_0', the features 3"):
        pattern_correlation(true, decoded, standardize=statistics)
    for wrong in (statistics[0], (statistics[0],), "zscore"):
        with pytest.raises(SchemaError, match="expected a mean and a deviation"):
            pattern_correlation(true, decoded, standardize=wrong)


def test_true_features_may_be_flat_as_they_are_computed_of_images():
    true, decoded = layers()
    decoded = decoded.rename(
        {f"conv1_unit_{axis}": f"conv1_{name}" for axis, name in enumerate(("channel", "y", "x"))}
    )
    arrays = [true[f"feature_{name}"].values.reshape(12, -1) for name in SHAPES]
    names = np.repeat(np.array(list(SHAPES), dtype=object), [a.shape[1] for a in arrays])
    flat = named(np.concatenate(arrays, axis=1), ["image", "feature"], layer=("feature", names))
    flat = flat.to_dataset(name="features")
    turned = decoded.transpose("conv1_x", "subject", "conv1_y", ...)
    wanted = profile_correlation(*layers())
    for predicted in (decoded, turned):
        found = profile_correlation(flat, predicted)
        np.testing.assert_allclose(found.transpose(*wanted.dims), wanted, atol=1e-12)
        assert found.layer.values.tolist() == names.tolist()
    patterns_of = pattern_correlation(true, layers()[1], standardize=training_statistics(true))
    found = pattern_correlation(flat, decoded, standardize=training_statistics(flat))
    np.testing.assert_allclose(found.transpose(*patterns_of.dims), patterns_of, atol=1e-12)
    with pytest.raises(SchemaError, match="no units"):
        profile_correlation(flat.isel(feature=slice(1, None)), decoded)


def test_arrays_without_names_are_of_the_same_images_or_refused():
    true, decoded = (a.drop_vars("image_id") for a in layer())
    assert profile_correlation(true, decoded).sizes["subject"] == 2
    with pytest.raises(SchemaError, match="12 true and 11 predicted samples without image_id"):
        profile_correlation(true, decoded.isel(image=slice(11)))


def test_the_verbs_are_public():
    for name in ("profile_correlation", "pattern_correlation", "pairwise_identification"):
        assert getattr(nedx, name).__name__ == name
