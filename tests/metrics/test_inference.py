"""Chance and confidence, against enumeration, scipy and published examples."""

import itertools

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.correlation import pearson_r
from nedx.metrics.inference import bootstrap_mean, bootstrap_r, fdr, permutation_p, sign_flip_p
from tests.laziness import computes_at_most


def pair(images=40, voxels=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, voxels))
    y = np.linspace(0, 1, voxels) * x + rng.standard_normal(x.shape)
    return tuple(
        xr.DataArray(a, dims=("image", "voxel"), attrs={"units": "percent"}) for a in (x, y)
    )


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_permutations_come_to_what_all_of_them_say(alternative):
    x, y = pair(images=6)
    found = permutation_p(x, y, n_permutations=5000, alternative=alternative)
    for voxel in range(4):
        a, b = x.values[:, voxel], y.values[:, voxel]
        chance = np.array(
            [np.corrcoef(a, b[list(o)])[0, 1] for o in itertools.permutations(range(6))]
        )
        observed = chance[0]
        wanted = {
            "greater": np.mean(chance >= observed - 1e-9),
            "less": np.mean(chance <= observed + 1e-9),
            "two-sided": np.mean(np.abs(chance) >= abs(observed) - 1e-9),
        }[alternative]
        assert float(found[voxel]) == pytest.approx(wanted, abs=0.03)
    assert found.attrs["units"] == "1"
    assert found.attrs["n_permutations"] == 5000


def test_chance_is_called_chance_as_often_as_it_should():
    rng = np.random.default_rng(3)
    x, y = (xr.DataArray(rng.standard_normal((30, 600)), dims=("image", "voxel")) for _ in "xy")
    p = permutation_p(x, y, n_permutations=199)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001
    assert float(p.min()) >= 1 / 200


@pytest.mark.parametrize(
    ("alternative", "sign", "size"),
    [("greater", 1, np.asarray), ("less", -1, np.asarray), ("two-sided", 1, np.abs)],
)
def test_all_sign_flips_are_counted_where_there_are_few(alternative, sign, size):
    rng = np.random.default_rng(0)
    values = xr.DataArray(rng.standard_normal((8, 5)) + 0.7, dims=("subject", "voxel"))
    flips = np.array(list(itertools.product((1, -1), repeat=8)))
    means = size(sign * flips @ (values.values - 0.2))
    wanted = np.mean(means >= means[0] - 1e-12, axis=0)
    found = sign_flip_p(values, null=0.2, alternative=alternative)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    drawn = sign_flip_p(values, null=0.2, n_permutations=200, alternative=alternative)
    np.testing.assert_allclose(drawn, wanted, atol=0.1)


def test_intervals_are_those_of_scipy():
    x, y = pair(images=200)
    found = bootstrap_r(x, y, n_resamples=2000)
    assert found.dims == ("voxel", "bound")
    for voxel in range(4):
        wanted = scipy.stats.bootstrap(
            (x.values[:, voxel], y.values[:, voxel]),
            lambda a, b: scipy.stats.pearsonr(a, b)[0],
            paired=True,
            vectorized=False,
            method="percentile",
            n_resamples=2000,
            rng=np.random.default_rng(5),
        ).confidence_interval
        np.testing.assert_allclose(found[voxel], wanted, atol=0.03)
    subjects = x.isel(image=slice(12)).rename(image="subject")
    mean = bootstrap_mean(subjects, level=0.9)
    wanted = scipy.stats.bootstrap(
        (subjects.values,), np.mean, axis=0, method="percentile", confidence_level=0.9,
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(mean.transpose("bound", ...), wanted, atol=0.03)
    assert mean.attrs["units"] == "percent"
    assert found.attrs["units"] == "1"
    assert mean.bound.values.tolist() == ["lower", "upper"]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    x = xr.DataArray(rng.standard_normal((100, 500)), dims=("image", "voxel"))
    y = 0.75 * x + np.sqrt(1 - 0.75**2) * rng.standard_normal(x.shape)
    low, high = bootstrap_r(x, y, n_resamples=400).transpose("bound", ...).values
    assert np.mean((low < 0.75) & (high > 0.75)) == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize(
    "verb",
    [
        lambda x, y: permutation_p(x, y, n_permutations=20),
        lambda x, y: bootstrap_r(x, y, n_resamples=20),
        lambda x, y: sign_flip_p(x, "image", n_permutations=20),
        lambda x, y: bootstrap_mean(x, "image", n_resamples=20),
    ],
)
def test_any_chunking_gives_the_same_lazily_and_nan_stays(verb):
    x, y = pair(voxels=600)
    x[3, 1] = np.nan
    whole = verb(x, y)
    with computes_at_most(0):
        lazy = verb(x.chunk(image=9, voxel=70), y.chunk(voxel=300))
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), whole, atol=1e-12)
    assert np.isnan(whole.isel(voxel=1)).all()
    assert np.isfinite(whole.isel(voxel=slice(2, None))).all()
    xr.testing.assert_identical(verb(x, y), whole)


def test_constants_are_neither_significant_nor_not():
    x, y = pair()
    x[:, 0] = 0.1
    assert np.isnan(permutation_p(x, y, n_permutations=20)[0])
    assert np.isnan(bootstrap_r(x, y, n_resamples=20)[0]).all()


def test_the_example_of_benjamini_and_hochberg():
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262]
    p = np.array([*p, 0.5719, 0.6528, 0.7590, 1.0])
    array = xr.DataArray(p[::-1].reshape(3, 5), dims=("vertex", "time"), attrs={"method": "t"})
    q = fdr(array)
    # Their paper: four hypotheses are rejected at 5 %.
    assert int((q <= 0.05).sum()) == 4
    by_hand = np.minimum.accumulate((p * 15 / np.arange(1, 16))[::-1])
    np.testing.assert_allclose(q.values.ravel(), by_hand, rtol=1e-12)
    assert q.attrs["method"] == "Benjamini-Hochberg"
    assert q.dims == array.dims


def test_tests_that_belong_together_are_counted_and_nan_are_not():
    p = xr.DataArray([[0.01, np.nan, 0.02], [0.01, 0.5, np.nan]], dims=("subject", "voxel"))
    wanted = [[0.02, np.nan, 0.02], [0.02, 0.5, np.nan]]
    np.testing.assert_allclose(fdr(p, "voxel"), wanted)
    with computes_at_most(0):
        lazy = fdr(p.chunk(voxel=1, subject=1), ["voxel"])
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), wanted)
    np.testing.assert_allclose(fdr(p)[0], [0.02, np.nan, 0.08 / 3])
    assert np.isnan(fdr(p * np.nan)).all()


def test_what_does_not_fit_is_said():
    x, y = pair()
    with pytest.raises(SchemaError, match="no dim 'trial'"):
        permutation_p(x, y, "trial")
    with pytest.raises(SchemaError, match="labels differ"):
        bootstrap_r(x, y.isel(image=slice(3)))
    with pytest.raises(SchemaError, match="no dim 'vertex'"):
        fdr(x, "vertex")
    with pytest.raises(ValueError, match="n_permutations is at least 1"):
        permutation_p(x, y, n_permutations=0)
    with pytest.raises(ValueError, match=r"95 % is level=0\.95"):
        bootstrap_mean(x, "image", level=95)
    with pytest.raises(ValueError, match="'two-sided'"):
        sign_flip_p(x, "image", alternative="both")


def test_images_are_never_paired_by_position():
    x, y = pair()
    names = np.array([f"set:{i}" for i in range(x.sizes["image"])], dtype=object)
    x, y = (
        x.assign_coords(image_id=("image", names)),
        y.assign_coords(image_id=("image", names[::-1])),
    )
    for verb in (permutation_p, bootstrap_r):
        with pytest.raises(SchemaError, match="not the same 'image_id'"):
            verb(x, y)


def test_resamples_without_a_correlation_do_not_take_the_interval_away():
    rng = np.random.default_rng(0)
    values = np.zeros((50, 2))
    # A neuron driven by three images of fifty: one resample in twenty has none of them.
    values[:3] = [[1, 3], [1, 2], [1, 1]]
    measured = xr.DataArray(values, dims=("image", "unit"))
    predicted = measured + 0.1 * rng.standard_normal(values.shape)
    found = bootstrap_r(measured, predicted)
    r = pearson_r(measured, predicted, "image")
    assert ((found.sel(bound="lower") < r) & (r < found.sel(bound="upper"))).all()
    few = bootstrap_r(measured[:4], predicted[:4], n_resamples=300)
    assert (abs(few) <= 1).all()
