"""Reliability of single trials and its threshold against correlation matrices and enumeration."""

import itertools

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import SchemaError
from nedx.metrics.permutation_ceiling import permutation_ceiling
from tests.laziness import computes_at_most
from tests.metrics.simulated import as_trials, simulated


def recorded(images=20, repetitions=6, voxels=5, seed=0):
    """Responses (image, repetition, voxel) of known signal over noise."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((images, 1, voxels)) * np.linspace(0, 2, voxels)
    values = signal + rng.standard_normal((images, repetitions, voxels))
    ids = np.array([f"set:{i:02d}" for i in range(images)], dtype=object)
    dims = ("image", "repetition", "voxel")
    array = xr.DataArray(values, dims=dims, coords={"image_id": ("image", ids)})
    return array.set_xindex("image_id")


def mean_of_pairs(trials):
    """Of (repetition, sample): the mean off the diagonal of the correlation matrix."""
    matrix = np.corrcoef(trials)
    return (matrix.sum() - len(matrix)) / (len(matrix) * (len(matrix) - 1))


def above_diagonal(trials, permuted):
    """The published statistic of one permutation."""
    count = len(trials)
    matrix = np.corrcoef(trials, permuted)[:count, count:]
    return matrix[np.triu_indices(count, 1)].mean()


def test_the_ceiling_is_the_mean_correlation_of_pairs_of_trials():
    array = recorded()
    found = permutation_ceiling(array, n_permutations=10)
    for voxel in range(5):
        wanted = mean_of_pairs(array.values[:, :, voxel].T)
        assert float(found.noise_ceiling[voxel]) == pytest.approx(max(wanted, 0), abs=1e-12)
    pattern = permutation_ceiling(array, per="pattern", n_permutations=10)
    assert pattern.noise_ceiling.dims == ("image",)
    assert "image_id" in pattern.xindexes
    for image in range(20):
        wanted = mean_of_pairs(array.values[image])
        assert float(pattern.noise_ceiling[image]) == pytest.approx(max(wanted, 0), abs=1e-12)
    assert found.noise_ceiling.attrs["units"] == "1"
    assert found.noise_ceiling.attrs["n_repetitions"] == 1


def test_it_recovers_the_share_of_signal_in_single_trials():
    array, _ = simulated(images=3000, repetitions=4)
    found = permutation_ceiling(array, null="normal")
    np.testing.assert_allclose(found.noise_ceiling, [0, 0.2, 0.5, 0.8], atol=0.03)


def test_the_threshold_is_that_of_all_permutations():
    # Of 3 trials of 4 images, 24^2 permutations matter: all of them can be made.
    array = recorded(images=4, repetitions=3, voxels=3)
    orders = list(itertools.permutations(range(4)))
    for level in (0.8, 0.95):
        found = permutation_ceiling(array, level=level, n_permutations=20_000)
        for voxel in range(3):
            trials = array.values[:, :, voxel].T
            every = [
                above_diagonal(
                    trials, np.stack([trials[0], trials[1][list(a)], trials[2][list(b)]])
                )
                for a, b in itertools.product(orders, orders)
            ]
            below = np.mean(np.array(every) < float(found.noise_ceiling_threshold[voxel]) - 1e-9)
            upto = np.mean(np.array(every) <= float(found.noise_ceiling_threshold[voxel]) + 1e-9)
            assert below - 0.01 <= level <= upto + 0.01


def test_the_threshold_is_the_published_rank():
    # Equal permutations for equal seeds: with one permutation it is the statistic itself.
    array = recorded(repetitions=4)
    order = np.random.default_rng(7).permuted(np.arange(60).reshape(3, 20), axis=1) % 20
    found = permutation_ceiling(array, n_permutations=1, seed=7)
    for voxel in range(5):
        trials = array.values[:, :, voxel].T
        permuted = np.stack([trials[0], *(t[o] for t, o in zip(trials[1:], order, strict=True))])
        wanted = above_diagonal(trials, permuted)
        assert float(found.noise_ceiling_threshold[voxel]) == pytest.approx(wanted, abs=1e-12)
    # So many permutations are as many statistics, of which the 5th from above is the 95th.
    rng, statistics = np.random.default_rng(7), []
    trials = array.values[:, :, 0].T
    for _ in range(100):
        order = rng.permuted(np.arange(60).reshape(3, 20), axis=1) % 20
        permuted = [trials[0], *(t[o] for t, o in zip(trials[1:], order, strict=True))]
        statistics.append(above_diagonal(trials, np.stack(permuted)))
    found = permutation_ceiling(array, n_permutations=100, seed=7, level=0.95)
    wanted = sorted(statistics)[-5]
    assert float(found.noise_ceiling_threshold[0]) == pytest.approx(wanted, abs=1e-12)


def test_the_normal_threshold_has_the_variance_of_all_permutations():
    array = recorded(images=4, repetitions=3, voxels=2)
    found = permutation_ceiling(array, null="normal", level=0.8413447460685429)
    orders = list(itertools.permutations(range(4)))
    for voxel in range(2):
        trials = array.values[:, :, voxel].T
        every = [
            above_diagonal(trials, np.stack([trials[0], trials[1][list(a)], trials[2][list(b)]]))
            for a, b in itertools.product(orders, orders)
        ]
        assert np.mean(every) == pytest.approx(0, abs=1e-12)
        assert float(found.noise_ceiling_threshold[voxel]) == pytest.approx(np.std(every))
    many = recorded(images=50, repetitions=8)
    one, other = (permutation_ceiling(many, null=null, n_permutations=5000) for null in
                  ("normal", "permutations"))  # fmt: skip
    np.testing.assert_allclose(
        one.noise_ceiling_threshold, other.noise_ceiling_threshold, rtol=0.06
    )


def test_noise_is_called_reliable_as_rarely_as_asked():
    rng = np.random.default_rng(0)
    noise = xr.DataArray(rng.standard_normal((20, 5, 2000)), dims=("image", "repetition", "voxel"))
    found = permutation_ceiling(noise, level=0.95, null="normal")
    share = float((found.noise_ceiling > found.noise_ceiling_threshold).mean())
    assert share == pytest.approx(0.05, abs=0.015)


def test_single_trials_in_any_order_are_the_same_repeats():
    array, _ = simulated(images=30)
    trials = as_trials(array)
    found = permutation_ceiling(trials, null="normal").noise_ceiling
    for voxel in range(4):
        # The n-th trial of every image, in the order they come.
        names = trials.image_id.values
        rows = np.stack([np.flatnonzero(names == name) for name in array.image_id.values])
        wanted = mean_of_pairs(trials.values[rows, voxel].T)
        assert float(found[voxel]) == pytest.approx(max(wanted, 0), abs=1e-12)
    strings = ("trial", trials.image_id.values.astype(np.dtypes.StringDType()))
    again = permutation_ceiling(trials.assign_coords(image_id=strings), null="normal")
    np.testing.assert_array_equal(again.noise_ceiling, found)


def test_constant_trials_and_nan_are_nan_in_voxels_and_left_out_of_patterns():
    array = recorded()
    array[:, 2, 1] = 0.1
    array[3, 0, 4] = np.nan
    found = permutation_ceiling(array, n_permutations=20)
    for name in found:
        assert np.isnan(found[name]).values.tolist() == [False, True, False, False, True]
    pattern = permutation_ceiling(array, per="pattern", n_permutations=20)
    wanted = [max(mean_of_pairs(trials[:, :4]), 0) for trials in array.values]
    np.testing.assert_allclose(pattern.noise_ceiling, wanted, atol=1e-12)
    assert np.isfinite(pattern.noise_ceiling_threshold).all()


def test_subjects_and_times_are_each_as_if_alone():
    array = recorded()
    other = recorded(seed=1)
    other[3, 0, 4] = np.nan
    both = xr.concat([array, other], dim="subject")
    both = xr.concat([both, both + 1], dim="time").transpose(
        "subject", "image", "repetition", "voxel", "time"
    )
    for per in ("voxel", "pattern"):
        for null in ("permutations", "normal"):
            options = {"per": per, "null": null, "n_permutations": 40}
            found = permutation_ceiling(both, **options)
            for row, alone in enumerate((array, other)):
                wanted = permutation_ceiling(alone, **options)
                for name in wanted:
                    for time in (0, 1):
                        one = found[name].isel(subject=row, time=time)
                        np.testing.assert_allclose(one, wanted[name], atol=1e-9)


@given(
    images=st.integers(1, 20), voxels=st.integers(1, 5), per=st.sampled_from(["voxel", "pattern"])
)
@settings(max_examples=10, deadline=None)
def test_any_chunking_gives_the_same(images, voxels, per):
    array = recorded()
    with computes_at_most(0):
        found = permutation_ceiling(
            array.chunk(image=images, voxel=voxels, repetition=4), per=per, n_permutations=30
        )
    assert all(dask.is_dask_collection(found[name]) for name in found)
    whole = permutation_ceiling(array, per=per, n_permutations=30)
    for name in found:
        np.testing.assert_allclose(
            found[name].compute(scheduler="sync"), whole[name].compute(scheduler="sync"),
            atol=1e-12,
        )  # fmt: skip


def test_bad_input_is_named():
    array = recorded()
    with pytest.raises(SchemaError, match="no repeats"):
        permutation_ceiling(array[:, 0])
    with pytest.raises(SchemaError, match="no repeats"):
        permutation_ceiling(array[:, :1])
    with pytest.raises(SchemaError, match="found ndarray, expected a DataArray"):
        permutation_ceiling(array.values)
    with pytest.raises(SchemaError, match="one image only"):
        permutation_ceiling(array[:1])
    with pytest.raises(SchemaError, match="one voxel only"):
        permutation_ceiling(array[..., :1], per="pattern")
    ragged = as_trials(array).isel(trial=slice(-1))
    with pytest.raises(SchemaError, match="images have 5 to 6 trials"):
        permutation_ceiling(ragged)
    for wrong in ({"per": "image"}, {"null": "t"}, {"level": 99}, {"n_permutations": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            permutation_ceiling(array, **wrong)


def test_real_neurons_are_as_reliable_as_other_estimators_say(shared_data):
    from nedx.metrics.noise_ceiling import ncsnr, noise_ceiling_from_ncsnr
    from nedx.sources.v4_cowley2023 import open_responses

    folder = shared_data / "v4_cowley2023"
    if not folder.is_dir():
        pytest.skip(f"the V4 recordings are not at {folder}")
    trials = open_responses(folder, "210325", repeats="trials")
    with pytest.raises(SchemaError, match="(?s)images have 6 to 10 trials.*stack_repetitions"):
        permutation_ceiling(trials)
    stacked = trials.ned.stack_repetitions(6)
    found = permutation_ceiling(stacked, null="normal").compute()
    values = stacked.response.values
    wanted = [max(mean_of_pairs(values[:, :, unit].T), 0) for unit in range(values.shape[-1])]
    np.testing.assert_allclose(found.noise_ceiling, wanted, atol=1e-9)
    # Both are the share of signal in single trials.
    other = noise_ceiling_from_ncsnr(ncsnr(stacked), 1)
    np.testing.assert_allclose(found.noise_ceiling, other, atol=0.02)
    assert (found.noise_ceiling > found.noise_ceiling_threshold).mean() > 0.9
    one = stacked.isel(unit=[0])
    drawn = permutation_ceiling(one, n_permutations=2000).noise_ceiling_threshold
    np.testing.assert_allclose(drawn, found.noise_ceiling_threshold[:1], rtol=0.1)
