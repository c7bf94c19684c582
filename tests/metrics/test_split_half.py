"""Random halves of the repeats, against every split by hand and known signals."""

import itertools

import numpy as np
import pytest
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.split_half import half_bounds, split_half, split_half_r
from tests.laziness import computes_at_most
from tests.metrics.simulated import RATIOS, ragged, simulated


def every_split(values):
    """Return the mean over all splits of r of the halves, and of the first with the mean of all.

    ``values (image, 2)``: one repeat of each image is in the first half.
    """
    halves, with_all = [], []
    for first in itertools.product((0, 1), repeat=len(values)):
        rows, first = np.arange(len(values)), np.array(first)
        a, b = values[rows, first], values[rows, 1 - first]
        halves.append(np.corrcoef(a, b)[0, 1])
        with_all.append(np.corrcoef(a, values.mean(1))[0, 1])
    return np.mean(halves), np.mean(with_all)


def test_the_mean_over_splits_is_that_of_all_splits():
    array, _ = simulated(images=7, repetitions=2)
    bounds = half_bounds(array, n_splits=4000)
    r = split_half_r(array, n_splits=4000)
    for voxel in range(RATIOS.size):
        lower, upper = every_split(array.values[..., voxel])
        assert float(r[voxel]) == pytest.approx(lower, abs=0.02)
        assert float(bounds.lower[voxel]) == pytest.approx(lower, abs=0.02)
        assert float(bounds.upper[voxel]) == pytest.approx(upper, abs=0.02)


@pytest.mark.parametrize("repetitions", [4, 5, 10])
def test_the_published_upper_bound_is_biased_as_it_says_and_the_fair_one_is_not(repetitions):
    array, signal = simulated(repetitions=repetitions)
    with computes_at_most(0):
        bounds = half_bounds(array.chunk(image=1000))
    bounds = bounds.compute()
    noise = 1 / (repetitions // 2)
    r = RATIOS**2 / (RATIOS**2 + noise)
    np.testing.assert_allclose(bounds.lower, r, atol=0.05)
    # cov(half, all) / sd(half) / sd(all), where all repeats share the noise of the half.
    upper = np.sqrt((RATIOS**2 + 1 / repetitions) / (RATIOS**2 + noise))
    np.testing.assert_allclose(bounds.upper, upper, atol=0.03)
    if repetitions % 2 == 0:
        assert float(bounds.upper[0]) == pytest.approx(0.5**0.5, abs=0.03)
    # What the signal itself reaches with half the repeats.
    half = array.isel(repetition=slice(repetitions // 2)).mean("repetition").values
    best = [np.corrcoef(half[:, v], signal.values[:, v])[0, 1] for v in range(1, RATIOS.size)]
    np.testing.assert_allclose(bounds.unbiased[1:], best, atol=0.04)
    assert float(bounds.unbiased[0]) < 0.25
    assert "0.71" in bounds.upper.attrs["bias"]
    assert "bias" not in bounds.unbiased.attrs
    assert {bounds[name].attrs["units"] for name in bounds} == {"1"}


def test_what_a_neuroid_misses_is_its_own_affair():
    """A NaN in one voxel changes nothing for another, whatever shares its block."""
    array, _ = ragged(simulated(images=40)[0])
    spoiled = array.copy()
    spoiled[3, 1, 0] = np.nan
    for data in (spoiled, spoiled.chunk(voxel=2), spoiled.chunk(voxel=1, image=9)):
        found = split_half(data, n_splits=5)
        np.testing.assert_array_equal(found[1:], split_half(array, n_splits=5)[1:])
    alone = split_half(spoiled.isel(voxel=[0]), n_splits=5)
    np.testing.assert_array_equal(split_half(spoiled, n_splits=5)[0], alone[0])


def test_many_neuroids_and_images_are_the_same_as_few():
    """Strips and tiles are cut inside: numbers must not depend on where."""
    array, _ = simulated(images=700, repetitions=3)
    wide = xr.concat([array] * 300, "voxel")
    np.testing.assert_allclose(
        split_half(wide, n_splits=2)[-4:], split_half(array, n_splits=2), atol=1e-6
    )


def test_large_means_and_float32_cost_nothing():
    array, _ = simulated(images=100)
    exact = split_half(array, n_splits=3)
    np.testing.assert_allclose(split_half((array + 300).astype("f4"), n_splits=3), exact, atol=1e-4)
    np.testing.assert_allclose(split_half((array + 1e4), n_splits=3), exact, atol=1e-6)


def test_constants_single_images_and_all_missing_are_nan():
    array, _ = simulated(images=20)
    array[..., 0] = 0.1
    array[..., 1] = np.nan
    array[1:, 1:, 2] = np.nan
    for data in (array, array.astype("f4"), array.chunk(image=3, voxel=1)):
        assert np.isnan(split_half(data, n_splits=2)).values.tolist() == [True, True, True, False]


def test_what_cannot_be_split_is_said():
    array, _ = simulated(images=5)
    with pytest.raises(SchemaError, match="no repeats"):
        half_bounds(array.isel(repetition=0))
    with pytest.raises(ValueError, match="n_splits is at least 1"):
        split_half(array, n_splits=0)
