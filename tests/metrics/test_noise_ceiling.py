import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import NedxWarning, SchemaError
from nedx.metrics.noise_ceiling import (
    ncsnr,
    noise_ceiling,
    noise_ceiling_from_ncsnr,
)
from nedx.metrics.scoring import score
from nedx.metrics.split_half import split_half
from tests.laziness import computes_at_most
from tests.metrics.simulated import RATIOS, as_trials, ragged, simulated


def by_hand(trials):
    """Evaluate the formula of NSD, one voxel and one image at a time."""
    found = []
    for voxel in range(trials.sizes["voxel"]):
        values = trials.values[:, voxel]
        groups = [values[trials.image_id.values == i] for i in np.unique(trials.image_id)]
        weighted = sum((len(g) - 1) * np.var(g, ddof=1) for g in groups if len(g) > 1)
        noise = weighted / sum(len(g) - 1 for g in groups)
        signal = max(0.0, np.var(values, ddof=1) - noise)
        inverse = np.mean([1 / len(g) for g in groups])
        found.append((np.sqrt(signal / noise), signal / (signal + noise * inverse)))
    return np.array(found).T


def close(found, truth, atol):
    """Compare with the truth; without signal the ceiling is known least, to about 0.04 (1 sd)."""
    np.testing.assert_allclose(found[1:], truth[1:], atol=atol)
    assert float(abs(found[0] - truth[0])) < 0.16


def test_unequal_repeats_equal_the_formula_in_both_layouts():
    array, _ = ragged(simulated(images=60)[0])
    trials = as_trials(array)
    ratio, ceiling = by_hand(trials)
    for data in (array, trials):
        np.testing.assert_allclose(ncsnr(data), ratio, rtol=1e-5)
        np.testing.assert_allclose(noise_ceiling(data), ceiling, rtol=1e-5)
    assert ncsnr(array).dtype == np.float32
    assert noise_ceiling(array).attrs["units"] == "1"


def test_known_ratios_are_recovered():
    array, _ = simulated()
    np.testing.assert_allclose(ncsnr(array)[1:], RATIOS[1:], rtol=0.05)
    assert float(ncsnr(array)[0]) < 0.15
    truth = RATIOS**2 / (RATIOS**2 + 1 / 4)
    for found in (noise_ceiling(array), split_half(array, n_splits=10)):
        close(found, truth, atol=0.03)


def test_split_half_of_odd_and_unequal_repeats_is_that_of_the_mean_of_all():
    odd, _ = simulated(repetitions=3)
    truth = RATIOS**2 / (RATIOS**2 + 1 / 3)
    close(split_half(odd, n_splits=10), truth, atol=0.04)
    uneven, counts = ragged(simulated()[0])
    truth = RATIOS**2 / (RATIOS**2 + np.mean(1 / counts[counts > 1]))
    close(split_half(uneven, n_splits=10), truth, atol=0.04)
    # The halves are drawn by position, which differs between the layouts.
    close(split_half(as_trials(uneven), n_splits=10), split_half(uneven, n_splits=10), atol=0.04)


def test_two_repeats_have_one_split_which_is_spearman_brown():
    array, _ = simulated(images=50, repetitions=2)
    halves = array.values.transpose(1, 2, 0)
    r = np.array([scipy.stats.pearsonr(a, b)[0] for a, b in zip(*halves, strict=True)])
    # Which of the two is the first half changes from image to image.
    found = split_half(array, n_splits=400)
    np.testing.assert_allclose(found[1:], (2 * r / (1 + r))[1:], atol=0.05)


def test_published_number_of_nsd_synthetic():
    # Gifford et al.: 236 images twice, 32 four times, 8 eight times, 8 ten times.
    counts = np.repeat([2, 4, 8, 10], [236, 32, 8, 8])
    ceiling = noise_ceiling_from_ncsnr(xr.DataArray([1.0, 0.0, np.inf]), counts)
    np.testing.assert_allclose(ceiling, [1 / (1 + 0.45), 0, 1], atol=1e-3)
    three = noise_ceiling_from_ncsnr(xr.DataArray(0.8), 3)
    assert float(three) == pytest.approx(0.64 / (0.64 + 1 / 3), rel=1e-6)


@pytest.mark.parametrize("method", ["ncsnr", "split_half", "leave_one_out"])
@given(
    images=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    repetitions=st.integers(1, 4),
    voxels=st.integers(1, 4),
)
@settings(max_examples=6)
def test_any_chunking_gives_the_same_lazily(method, images, repetitions, voxels):
    array, _ = ragged(simulated(images=sum(images))[0])
    chunks = {"image": tuple(images), "repetition": repetitions, "voxel": voxels}
    trials = as_trials(array)
    # Labels are read, so they are there.
    pieces = trials.chunk(trial=5, voxel=voxels).assign_coords(image_id=trials.image_id.variable)
    with computes_at_most(0):
        lazy = noise_ceiling(array.chunk(chunks), method=method, n_splits=3)
        by_trial = noise_ceiling(pieces, method=method, n_splits=3)
    whole = noise_ceiling(array, method=method, n_splits=3)
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), whole, atol=1e-6)
    whole = noise_ceiling(trials, method=method, n_splits=3)
    np.testing.assert_allclose(by_trial.compute(scheduler="sync"), whole, atol=1e-6)


def test_chunks_of_images_are_read_once_and_never_joined():
    array, _ = simulated(images=40)
    read = []

    def note(block):
        read.append(block.shape)
        return block

    lazy = array.chunk(image=10).copy()
    lazy.data = lazy.data.map_blocks(note, dtype=lazy.dtype, meta=np.empty((0, 0, 0)))
    found = noise_ceiling(lazy).compute(scheduler="sync")
    np.testing.assert_allclose(found, noise_ceiling(array), atol=1e-6)
    assert read == [(10, 4, 4)] * 4


@pytest.mark.parametrize(
    ("dtype", "offset", "error"), [("f4", 0, 1e-6), ("f4", 1000, 2e-5), ("f8", 1e6, 1e-7)]
)
def test_wide_arrays_equal_numpy_whatever_their_mean(dtype, offset, error):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((90, 3, 1100)) + 2 * rng.standard_normal((90, 1, 1100)) + offset
    array = xr.DataArray(values.astype(dtype), dims=("image", "repetition", "vertex"))
    exact = array.values.astype("f8")
    noise = exact.var(axis=1, ddof=1).mean(axis=0)
    signal = exact.reshape(-1, 1100).var(axis=0, ddof=1) - noise
    np.testing.assert_allclose(noise_ceiling(array), signal / (signal + noise / 3), atol=error)
    np.testing.assert_allclose(ncsnr(array), np.sqrt(signal / noise), rtol=10 * error)


def test_float16_time_series_of_subjects():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2, 50, 1, 3, 5))
    values = signal + rng.standard_normal((2, 50, 4, 3, 5))
    dims = ("subject", "image", "repetition", "channel", "time")
    array = xr.DataArray(values.astype("f2"), dims=dims)
    found = noise_ceiling(array)
    assert found.dims == ("subject", "channel", "time")
    exact = array.values.astype("f8")
    noise = exact.var(axis=2, ddof=1).mean(axis=1)
    total = exact.reshape(2, -1, 3, 5).var(axis=1, ddof=1)
    np.testing.assert_allclose(found, (total - noise) / (total - noise + noise / 4), atol=1e-6)


def test_constants_are_nan_equal_repeats_infinite_and_infinite_values_absent():
    array, _ = simulated(images=30)
    array[..., 0] = 0.1
    array[..., 1] = array[:, :1, 1]
    array[2, 3, 2] = np.inf
    for data in (array, array.astype("f4"), array.chunk(image=7)):
        found = ncsnr(data)
        assert np.isnan(found[0])
        assert np.isinf(found[1])
        assert np.isfinite(found[2:]).all()
        assert float(noise_ceiling(data)[1]) == 1
    absent = array.where(np.isfinite(array))
    np.testing.assert_array_equal(ncsnr(array)[2:], ncsnr(absent)[2:])


def test_labels_stay_and_what_the_data_said_before_goes():
    array, _ = simulated(images=20)
    array = array.assign_coords(
        voxel=("voxel", np.arange(4), {"space": "T1w"}),
        noise_ceiling=("voxel", np.zeros(4)),
    ).assign_attrs(units="percent")
    for method in ("ncsnr", "split_half", "leave_one_out"):
        found = xr.Dataset({"response": array}).ned.noise_ceiling(method=method)
        assert found.name == "noise_ceiling"
        assert found.attrs["units"] == "1"
        assert found.attrs["method"] == method
        assert found.attrs["n_repetitions"] == 4
        assert found.voxel.attrs == {"space": "T1w"}
        assert "noise_ceiling" not in found.coords
        assert found.to_dataset().noise_ceiling.max() > 0.5


def test_a_seed_repeats_the_splits():
    array, _ = simulated(images=30)
    first, second, other = (split_half(array, n_splits=2, seed=s) for s in (0, 0, 1))
    xr.testing.assert_identical(first, second)
    assert not np.allclose(first, other)


def test_no_repeats_are_an_error():
    array, _ = simulated(images=5)
    with pytest.raises(SchemaError, match="no repeats"):
        ncsnr(array.isel(repetition=0))
    with pytest.raises(SchemaError, match="no variable 'response'"):
        noise_ceiling(xr.Dataset())
    with pytest.raises(ValueError, match="'ncsnr', 'split_half' or"):
        noise_ceiling(array, method="half")
    with pytest.raises(ValueError, match="at least 1 of every image"):
        noise_ceiling_from_ncsnr(xr.DataArray([1.0]), [3, 0])


def test_the_perfect_model_scores_its_ceiling():
    array, signal = simulated()
    ds = xr.Dataset({"response": array, "response_predicted": signal}).isel(voxel=slice(1, None))
    with computes_at_most(0):
        scored = score(ds.chunk(image=500))
    scored = scored.compute()
    np.testing.assert_allclose(scored.accuracy_normalized, 1, atol=0.03)
    mean = array.mean("repetition").values
    r = [scipy.stats.pearsonr(mean[:, v], signal.values[:, v])[0] for v in (1, 2, 3)]
    np.testing.assert_allclose(scored.accuracy, r, atol=1e-6)
    assert scored.accuracy.dtype == np.float32
    assert {"response", "response_predicted", "noise_ceiling"} <= set(scored)
    assert all(
        scored[n].attrs["units"] == "1"
        for n in ("accuracy", "noise_ceiling", "accuracy_normalized")
    )


def test_trials_are_averaged_by_image_before_they_are_compared():
    array, signal = simulated(images=300)
    ds = xr.Dataset({"response": array, "response_predicted": signal}).isel(voxel=slice(1, None))
    trials = as_trials(ds.response)
    position = {image: i for i, image in enumerate(array.image_id.values)}
    rows = [position[i] for i in trials.image_id.values]
    predicted = ("trial", "voxel"), ds.response_predicted.values[rows]
    by_trial = xr.Dataset({"response": trials, "response_predicted": predicted})
    for found in (score(by_trial), score(by_trial.chunk(trial=100))):
        for name in ("accuracy", "accuracy_normalized"):
            np.testing.assert_allclose(found[name], score(ds)[name], rtol=1e-4)


def test_a_ceiling_that_is_there_is_used_and_zero_gives_nan():
    array, signal = simulated(images=50)
    ceiling = xr.DataArray([0.0, 0.25, 1.0, 1.0], dims="voxel")
    ds = xr.Dataset(
        {"response": array, "response_predicted": signal + 0.0, "noise_ceiling": ceiling}
    )
    scored = score(ds)
    ratio = scored.accuracy_normalized / scored.accuracy
    np.testing.assert_allclose(ratio[1:], [2, 1, 1], rtol=1e-6)
    assert np.isnan(scored.accuracy_normalized[0])


def test_without_repeats_only_the_accuracy_is_added():
    array, signal = simulated(images=50)
    ds = xr.Dataset({"response": array.isel(repetition=0), "response_predicted": signal})
    assert {"accuracy"} == set(score(ds)) - set(ds)


def test_what_is_missing_or_was_trained_on_is_said():
    array, signal = simulated(images=4)
    with pytest.raises(SchemaError, match="response_predicted"):
        score(xr.Dataset({"response": array}))
    ds = xr.Dataset({"response": array, "response_predicted": signal})
    ds = ds.assign_coords(partition=("image", ["train", "test", "test", "test"]))
    with pytest.warns(NedxWarning, match="used in training"):
        score(ds)


def test_images_that_trained_the_model_of_another_subject_are_said(recwarn):
    array, signal = simulated(images=4)
    both = [part.expand_dims(subject=["sub-01", "sub-02"]) for part in (array, signal)]
    ds = xr.Dataset(dict(zip(("response", "response_predicted"), both, strict=True)))
    kinds = [["train", "test", "test", "test"], ["test", "test", "test", "train"]]
    ds = ds.assign_coords(partition=(("subject", "image"), kinds))
    with pytest.warns(NedxWarning, match="used in training") as raised:
        score(ds)
    advice = str(raised[0].message).partition("select first: ")[2]
    chosen = eval(advice, {"ds": ds})
    assert chosen.sizes["image"] == 2
    recwarn.clear()
    score(chosen)
    assert not [one for one in recwarn if "training" in str(one.message)]
