"""Repeats predicted by the other repeats, and subjects by the other subjects."""

import numpy as np
import pytest
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.leave_one_subject_out import leave_one_subject_out
from nedx.metrics.noise_ceiling import leave_one_out_r, noise_ceiling
from tests.laziness import computes_at_most
from tests.metrics.simulated import RATIOS, as_trials, ragged, simulated


def pairs_by_hand(trials):
    """Correlate every trial with the mean of the other trials of its image."""
    found = []
    for values in trials.values.T:
        ones, others = [], []
        for image in np.unique(trials.image_id):
            group = values[trials.image_id.values == image]
            for left in range(len(group)) if len(group) > 1 else ():
                ones.append(group[left])
                others.append(np.delete(group, left).mean())
        found.append(np.corrcoef(ones, others)[0, 1])
    return found


@pytest.mark.parametrize("offset", [0, 300])
def test_each_repeat_is_correlated_with_the_mean_of_the_others(offset):
    array, _ = ragged(simulated(images=60)[0] + offset)
    trials = as_trials(array)
    for data in (array, trials, array.astype("f4"), array.chunk(image=7, voxel=3)):
        np.testing.assert_allclose(leave_one_out_r(data), pairs_by_hand(trials), atol=2e-6)
    assert leave_one_out_r(array).attrs["units"] == "1"


@pytest.mark.parametrize("repetitions", [2, 3, 5])
def test_the_ceiling_of_the_mean_of_all_is_recovered(repetitions):
    array, _ = simulated(repetitions=repetitions)
    found = noise_ceiling(array, method="leave_one_out")
    truth = RATIOS**2 / (RATIOS**2 + 1 / repetitions)
    np.testing.assert_allclose(found[1:], truth[1:], atol=0.04)
    assert float(found[0]) < 0.2
    assert found.attrs["n_repetitions"] == repetitions
    assert found.attrs["method"] == "leave_one_out"


def test_the_ceiling_of_unequal_repeats_is_that_of_their_mean():
    array, counts = ragged(simulated()[0])
    truth = RATIOS**2 / (RATIOS**2 + np.mean(1 / counts))
    found = noise_ceiling(array, method="leave_one_out")
    np.testing.assert_allclose(found[1:], truth[1:], atol=0.04)


def test_equal_repeats_reach_one_and_constants_nothing():
    array, _ = simulated(images=30)
    array[:] = array.isel(repetition=[0])
    array[..., 0] = 0.1
    for data in (array, array.astype("f4"), array.chunk(image=4)):
        found = noise_ceiling(data, method="leave_one_out")
        assert np.isnan(found[0])
        np.testing.assert_array_equal(found[1:], 1)


def subjects(n_subjects=5, images=50, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((1, images, 3))
    values = common * [0, 1, 2] + rng.standard_normal((n_subjects, images, 3))
    return xr.DataArray(values, dims=("subject", "image", "vertex"), attrs={"units": "percent"})


def test_subjects_are_compared_with_the_others_and_with_all():
    array = subjects()
    with computes_at_most(0):
        found = leave_one_subject_out(array.chunk(image=20, subject=2))
    for one in range(5):
        rest = np.delete(array.values, one, axis=0).mean(0)
        for vertex in range(3):
            own = array.values[one, :, vertex]
            lower = np.corrcoef(own, rest[:, vertex])[0, 1]
            upper = np.corrcoef(own, array.values[..., vertex].mean(0))[0, 1]
            assert float(found.lower[one, vertex]) == pytest.approx(lower, abs=1e-6)
            assert float(found.upper[one, vertex]) == pytest.approx(upper, abs=1e-6)
    assert found.lower.attrs["units"] == "1"
    assert "bias" in found.upper.attrs
    assert "bias" not in found.lower.attrs


def test_the_upper_bound_of_pure_noise_is_what_its_attribute_says():
    found = leave_one_subject_out(subjects(n_subjects=4, images=4000)).isel(vertex=0)
    assert "0.50" in found.upper.attrs["bias"]
    np.testing.assert_allclose(found.upper, 0.5, atol=0.04)
    np.testing.assert_allclose(found.lower, 0, atol=0.05)


def test_repeats_of_subjects_are_averaged_first():
    single = subjects()
    twice = xr.concat([single + 1, single - 1], "repetition").transpose("subject", "image", ...)
    xr.testing.assert_allclose(leave_one_subject_out(twice), leave_one_subject_out(single))


def test_one_subject_has_no_others():
    with pytest.raises(SchemaError, match=r"1 subject .*subject=\[1, 2\]"):
        leave_one_subject_out(subjects(n_subjects=1))
    with pytest.raises(SchemaError, match="no subject"):
        leave_one_subject_out(subjects().isel(subject=0))


def test_subjects_in_float16_equal_those_in_float32():
    rng = np.random.default_rng(0)
    values = (600 + rng.standard_normal((200, 20, 2))).astype("f2")
    array = xr.DataArray(values, dims=("subject", "image", "voxel"))
    xr.testing.assert_allclose(
        leave_one_subject_out(array), leave_one_subject_out(array.astype("f4")), atol=1e-6
    )
