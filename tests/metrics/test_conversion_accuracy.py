"""Converted against measured trials: all pairs of trials correlated one by one, with numpy."""

import dask
import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import SchemaError, SelectionError
from nedx.metrics.permutation_ceiling import permutation_ceiling
from nedx.metrics.profiles import training_statistics
from tests.laziness import computes_at_most

IMAGES, VOXELS = 16, 8


def pair(measured_repeats=5, converted_repeats=3, seed=0):
    """Measured and converted trials (image, repetition, voxel) of one signal."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((IMAGES, 1, VOXELS)) * np.linspace(0, 2, VOXELS)
    ids = np.array([f"set:{i:02d}" for i in range(IMAGES)], dtype=object)
    dims = ("image", "repetition", "voxel")
    return tuple(
        xr.DataArray(
            signal + rng.standard_normal((IMAGES, count, VOXELS)) + 7,
            dims=dims,
            coords={"image_id": ("image", ids)},
            name="response",
        ).set_xindex("image_id")
        for count in (measured_repeats, converted_repeats)
    )


def mean_of_all_pairs(first, second):
    """Of (repetition, sample) each."""
    matrix = np.corrcoef(first, second)
    return matrix[: len(first), len(first) :].mean()


def test_it_is_the_mean_correlation_of_all_pairs_of_trials():
    measured, converted = pair()
    found = nedx.conversion_accuracy(measured, converted, n_permutations=50)
    y, x = measured.values, converted.values
    wanted = [mean_of_all_pairs(y[:, :, v].T, x[:, :, v].T) for v in range(VOXELS)]
    np.testing.assert_allclose(found.accuracy, wanted, atol=1e-12)
    assert found.accuracy.attrs["units"] == "1"
    pattern = nedx.conversion_accuracy(measured, converted, per="pattern", n_permutations=50)
    wanted = [mean_of_all_pairs(y[i], x[i]) for i in range(IMAGES)]
    np.testing.assert_allclose(pattern.accuracy, wanted, atol=1e-12)
    assert pattern.accuracy.dims == ("image",)
    assert "image_id" in pattern.xindexes


def test_it_is_normalised_where_the_ceiling_is_above_chance():
    measured, converted = pair()
    options = {"n_permutations": 300, "level": 0.95, "seed": 3}
    found = nedx.conversion_accuracy(measured, converted, **options).compute()
    ceiling = permutation_ceiling(measured, **options).compute()
    xr.testing.assert_allclose(found.noise_ceiling, ceiling.noise_ceiling)
    xr.testing.assert_allclose(found.noise_ceiling_threshold, ceiling.noise_ceiling_threshold)
    trusted = (found.noise_ceiling > found.noise_ceiling_threshold).values
    assert 0 < trusted.sum() < VOXELS
    wanted = np.clip(found.accuracy / found.noise_ceiling, -1, 1).values
    np.testing.assert_allclose(found.accuracy_normalized, np.where(trusted, wanted, np.nan))


def test_a_perfect_conversion_reaches_its_ceiling():
    # Trials of the same signal and noise in both subjects correlate as trials of one do.
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2000, 1, 3))
    dims = ("image", "repetition", "voxel")
    measured, converted = (
        xr.DataArray(signal + rng.standard_normal((2000, 6, 3)), dims=dims) for _ in range(2)
    )
    found = nedx.conversion_accuracy(measured, converted, null="normal")
    np.testing.assert_allclose(found.accuracy, 0.5, atol=0.03)
    np.testing.assert_allclose(found.accuracy_normalized, 1, atol=0.05)


def test_trials_are_joined_by_name_whatever_their_order():
    measured, converted = pair()
    wanted = nedx.conversion_accuracy(measured, converted, null="normal")
    order = np.random.default_rng(0).permutation(IMAGES)
    shuffled = nedx.conversion_accuracy(measured, converted.isel(image=order), null="normal")
    xr.testing.assert_allclose(shuffled, wanted)
    stacked = converted.isel(image=order).transpose("repetition", "image", "voxel").values
    trials = xr.DataArray(
        stacked.reshape(-1, VOXELS),
        dims=("trial", "voxel"),
        coords={
            "image_id": ("trial", np.tile(converted.image_id.values[order], 3)),
            "repetition": ("trial", np.repeat([0, 1, 2], IMAGES)),
        },
    )
    mixed = trials.isel(trial=np.random.default_rng(1).permutation(trials.sizes["trial"]))
    for given in (trials, mixed):
        found = nedx.conversion_accuracy(measured, given.to_dataset(name="response"), null="normal")
        xr.testing.assert_allclose(found, wanted)


def test_means_can_be_compared_and_then_have_no_ceiling():
    measured, converted = (array.mean("repetition") for array in pair())
    found = nedx.conversion_accuracy(measured, converted)
    assert list(found) == ["accuracy"]
    wanted = [np.corrcoef(measured[:, v], converted[:, v])[0, 1] for v in range(VOXELS)]
    np.testing.assert_allclose(found.accuracy, wanted, atol=1e-12)


def test_many_sources_and_times_are_labelled():
    measured, converted = pair()
    sources = xr.concat([converted, -converted], dim="source").assign_coords(source=["a", "b"])
    found = nedx.conversion_accuracy(measured, sources, null="normal")
    assert found.accuracy.dims == ("source", "voxel")
    assert found.noise_ceiling.dims == ("voxel",)
    np.testing.assert_allclose(found.accuracy.sel(source="a"), -found.accuracy.sel(source="b"))
    timed = [xr.concat([a, 2 * a], dim="time").assign_coords(time=[0.1, 0.2]) for a in
             (measured, converted)]  # fmt: skip
    found = nedx.conversion_accuracy(*timed, null="normal", per="pattern")
    assert found.accuracy.dims == ("time", "image")
    np.testing.assert_allclose(found.accuracy[0], found.accuracy[1], atol=1e-12)


def test_a_tree_of_sources_is_compared_at_once():
    """As conversions of several subjects are; each saw the images in an order of its own."""
    measured, converted = pair()
    order = np.random.default_rng(0).permutation(IMAGES)
    one, other = (
        array.to_dataset(name="response").assign_coords(subject=name)
        for name, array in (("a", converted), ("b", -converted.isel(image=order)))
    )
    tree = xr.DataTree.from_dict({"sub-01": one, "sub-03": other})
    for per in ("voxel", "pattern"):
        found = nedx.conversion_accuracy(measured, tree, null="normal", per=per)
        assert found.accuracy.dims[0] == "source"
        assert found.source.values.tolist() == ["sub-01", "sub-03"]
        alone = nedx.conversion_accuracy(measured, converted, null="normal", per=per)
        np.testing.assert_allclose(found.accuracy[0], alone.accuracy, atol=1e-12)
        np.testing.assert_allclose(found.accuracy[1], -alone.accuracy, atol=1e-12)
        ceiling = xr.broadcast(alone.noise_ceiling, found.noise_ceiling)[0]
        np.testing.assert_allclose(
            found.noise_ceiling, ceiling.transpose(*found.noise_ceiling.dims)
        )
    others = other.assign_coords(voxel=np.arange(VOXELS) + 1)
    tree = {"sub-01": one.assign_coords(voxel=np.arange(VOXELS)), "sub-03": others}
    with pytest.raises(SchemaError, match="labels differ"):
        nedx.conversion_accuracy(measured, xr.DataTree.from_dict(tree))
    fewer = xr.DataTree.from_dict({"sub-01": one, "sub-03": other.isel(repetition=slice(2))})
    with pytest.raises(SchemaError, match="sources differ in size"):
        nedx.conversion_accuracy(measured, fewer)
    fewer = xr.DataTree.from_dict({"sub-01": one, "sub-03": other.isel(image=slice(2))})
    with pytest.raises(SchemaError, match="14 converted images are not converted of another"):
        nedx.conversion_accuracy(measured, fewer)
    with pytest.raises(SchemaError, match="no child of the DataTree holds a 'response'"):
        nedx.conversion_accuracy(measured, xr.DataTree())
    for ds in (one, other):
        ds["response"].attrs["converted_from"] = "sub-07"
    with pytest.raises(SchemaError, match="sub-01, sub-03 are all converted from sub-07"):
        nedx.conversion_accuracy(measured, xr.DataTree.from_dict({"sub-01": one, "sub-03": other}))


def test_patterns_are_standardised_by_the_training_set():
    measured, converted = pair()
    training = pair(seed=9)[0].mean("repetition")
    training[:, 2] = 1.0
    mean, sd = training.values.mean(0), training.values.std(0, ddof=1)
    kept = sd > 0
    y, x = (((array.values - mean)[..., kept]) / sd[kept] for array in (measured, converted))
    statistics = training_statistics(training)
    found = nedx.conversion_accuracy(
        measured, converted, per="pattern", standardize=statistics, null="normal"
    )
    wanted = [mean_of_all_pairs(y[i], x[i]) for i in range(IMAGES)]
    np.testing.assert_allclose(found.accuracy, wanted, atol=1e-10)


def test_patterns_of_rois():
    measured, converted = pair()
    mask = np.zeros((2, VOXELS), bool)
    mask[0, :5], mask[1, 4:] = True, True
    ds = measured.to_dataset().assign_coords(
        roi=np.array(["V1", "FFA"], dtype=object), roi_mask=(("roi", "voxel"), mask)
    )
    found = nedx.conversion_accuracy(ds, converted, per="pattern", roi=["FFA", "V1"], null="normal")
    assert found.accuracy.dims == ("roi", "image")
    assert list(found.roi.values) == ["FFA", "V1"]
    assert "image_id" in found.xindexes
    for row, name in enumerate(["V1", "FFA"]):
        alone = nedx.conversion_accuracy(
            measured[..., mask[row]], converted[..., mask[row]], per="pattern", null="normal"
        )
        for variable in alone:
            np.testing.assert_array_equal(found[variable].sel(roi=name), alone[variable])
    with pytest.raises(SelectionError, match="V2"):
        nedx.conversion_accuracy(ds, converted, per="pattern", roi="V2")
    with pytest.raises(SelectionError, match="ds.ned.roi"):
        nedx.conversion_accuracy(ds, converted, roi="V1")
    with pytest.raises(SchemaError, match="convert to the subject that was measured"):
        nedx.conversion_accuracy(ds, converted[..., :3], per="pattern", roi="V1")


@pytest.mark.parametrize("per", ["voxel", "pattern"])
def test_nothing_is_computed_and_chunks_make_no_difference(per):
    measured, converted = pair()
    measured[2, 1, 3] = np.nan
    lazy = measured.chunk(image=5, voxel=3, repetition=2), converted.chunk(image=7, voxel=2)
    with computes_at_most(0):
        found = nedx.conversion_accuracy(*lazy, per=per, n_permutations=30)
    assert all(dask.is_dask_collection(found[name]) for name in found)
    whole = nedx.conversion_accuracy(measured, converted, per=per, n_permutations=30)
    for name in found:
        np.testing.assert_allclose(found[name].compute(), whole[name].compute(), atol=1e-12)
    missing = np.isnan(whole.accuracy.values)
    # A voxel that holds a NaN is NaN; of patterns it is left out.
    assert missing.tolist() == [per == "voxel" and i == 3 for i in range(missing.size)]
    if per == "pattern":
        rest = np.arange(VOXELS) != 3
        wanted = [
            mean_of_all_pairs(measured.values[i][:, rest], converted.values[i][:, rest])
            for i in range(IMAGES)
        ]
        np.testing.assert_allclose(whole.accuracy, wanted, atol=1e-12)


def test_what_does_not_fit_is_named():
    measured, converted = pair()
    with pytest.raises(
        SchemaError, match="1 converted images are not measured, for example set:00"
    ):
        nedx.conversion_accuracy(measured[1:], converted)
    with pytest.raises(SchemaError, match="8 measured and 7 converted along 'voxel'"):
        nedx.conversion_accuracy(measured, converted[..., 1:])
    with pytest.raises(SchemaError, match="one image only"):
        nedx.conversion_accuracy(measured[:1], converted[:1])
    with pytest.raises(ValueError, match="per is 'voxel' or 'pattern'"):
        nedx.conversion_accuracy(measured, converted, per="roi")
    with pytest.raises(SchemaError, match="no variable 'response'"):
        nedx.conversion_accuracy(xr.Dataset(), converted)
    with pytest.raises(SchemaError, match="expected a mean and a deviation"):
        nedx.conversion_accuracy(measured, converted, per="pattern", standardize=measured.mean())


def test_a_ceiling_of_nothing_normalises_nothing():
    """Whatever part of the chance distribution is below it."""
    measured, converted = pair()
    found = nedx.conversion_accuracy(measured, converted, level=0.01, n_permutations=100).compute()
    nothing = found["noise_ceiling"] == 0
    assert nothing.any()
    assert (found["noise_ceiling_threshold"] < 0).all()
    np.testing.assert_array_equal(found["accuracy_normalized"].isnull(), nothing)
