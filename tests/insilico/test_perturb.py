"""Noise in the place of channels: what it keeps and destroys, and that labels alone tell it."""

from __future__ import annotations

import json

import mne
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import nedx
from nedx.errors import SchemaError, SelectionError
from nedx.insilico import noise as kernels
from nedx.preprocessing.epochs import EpochSettings, epochs
from tests.laziness import computes_at_most

CHANNELS = ["Pz", "Fp1", "O1", "Oz", "O2", "C3", "Cz", "C4"]
VISUAL = [0, 2, 3, 4]
OTHERS = [1, 5, 6, 7]
N_TIMES = 250
ATTRS = {"units": "uV", "source": "measured", "long_name": "response"}
NOISES = ("matched", "phase", "shuffle", "zero", "mean")


def eeg(n_images=12, n_times=N_TIMES, dtype=np.float32) -> xr.Dataset:
    rng = np.random.default_rng(0)
    dims = ("subject", "image", "channel", "time")
    shape = (2, n_images, len(CHANNELS), n_times)
    # Each trace has a mean and a standard deviation of its own, and a spectrum that is not white.
    walk = np.cumsum(rng.standard_normal(shape), axis=-1)
    offset, scale = rng.normal(size=(*shape[:-1], 1)) * 20, rng.uniform(0.1, 3, (*shape[:-1], 1))
    return xr.Dataset(
        {"response": (dims, (offset + scale * walk).astype(dtype), ATTRS)},
        {
            "subject": ["sub-01", "sub-02"],
            "image_id": ("image", [f"t:{i:02}" for i in range(n_images)]),
            "channel": CHANNELS,
            "time": ("time", np.arange(n_times) / 250, {"units": "s"}),
        },
        {"modality": "eeg", "history": "2026-01-01 recorded"},
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("noise", NOISES)
def test_only_what_was_asked_for_changes(noise, dtype):
    ds = eeg(dtype=dtype).chunk(image=5, channel=3, time=70)
    hurt = ds.ned.perturb(region="visual", time=slice(0.2, 0.4), noise=noise, seed=3)
    before, after = ds.response.values, hurt.response.values
    assert after.dtype == dtype
    assert hurt.response.dims == ds.response.dims
    changed = np.zeros(before.shape, bool)
    changed[:, :, VISUAL, 50:101] = True
    np.testing.assert_array_equal(after[~changed].view("u2"), before[~changed].view("u2"))
    assert (after[changed] != before[changed]).mean() > 0.98


def test_matched_noise_is_white_with_the_mean_and_deviation_of_each_trace():
    ds = eeg(n_images=40)
    before = ds.response.values[:, :, VISUAL].astype(np.float64)
    after = ds.ned.perturb(channels="visual").response.values[:, :, VISUAL].astype(np.float64)
    sd = before.std(-1, ddof=1)
    z = (after.mean(-1) - before.mean(-1)) / sd * np.sqrt(N_TIMES)
    ratio = after.std(-1, ddof=1) / sd
    # The published check is 3 standard errors, which one of 370 traces exceeds by chance.
    assert (np.abs(z) < 3).mean() > 0.98
    assert (np.abs(ratio - 1) < 3 / np.sqrt(N_TIMES)).mean() > 0.98
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.001
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    standard = (after - after.mean(-1, keepdims=True)) / after.std(-1, keepdims=True)
    assert stats.kstest(standard.ravel()[::7], "norm").pvalue > 0.001
    lag = (standard[..., 1:] * standard[..., :-1]).mean()
    assert abs(lag) < 0.02
    # Every trace has noise of its own: channels, images and subjects are not copies.
    r = np.corrcoef(standard.reshape(-1, N_TIMES))
    assert np.abs(r[~np.eye(len(r), dtype=bool)]).max() < 0.4


@pytest.mark.parametrize("n_times", [250, 251])
def test_random_phases_keep_each_amplitude(n_times):
    ds = eeg(n_times=n_times)
    before = ds.response.values[:, :, VISUAL].astype(np.float64)
    after = ds.ned.perturb(channels="visual", noise="phase").response.values[:, :, VISUAL]
    amplitudes = [np.abs(np.fft.fft(x.astype(np.float64))) for x in (before, after)]
    largest = amplitudes[0].max(-1, keepdims=True)
    np.testing.assert_allclose(amplitudes[1] / largest, amplitudes[0] / largest, atol=1e-5)
    centred = [x - x.mean(-1, keepdims=True) for x in (before, after)]
    r = (centred[0] * centred[1]).sum(-1) / np.prod(
        [np.linalg.norm(c, axis=-1) for c in centred], 0
    )
    assert np.abs(r).mean() < 0.7
    assert abs(r.mean()) < 0.15


def test_shuffled_responses_are_those_of_another_image():
    ds = eeg()
    after = ds.ned.perturb(channels=["O1", "Cz"], noise="shuffle", seed=1).response.values
    before = ds.response.values
    found = [
        [int(np.flatnonzero((before[s, :, 2] == after[s, i, 2]).all(-1))[0]) for i in range(12)]
        for s in range(2)
    ]
    assert found[0] == found[1]
    assert sorted(found[0]) == list(range(12))
    assert all(i != j for i, j in enumerate(found[0]))
    np.testing.assert_array_equal(after[:, :, 6], before[:, found[0], 6])
    order = np.random.default_rng(2).permutation(12)
    again = ds.isel(image=order).ned.perturb(channels=["O1", "Cz"], noise="shuffle", seed=1)
    np.testing.assert_array_equal(again.response.values, after[:, order])


def test_shuffled_trials_are_those_of_another_image():
    ids = np.array(list("aabbbcab"))
    values = np.arange(8, dtype=np.float32)[:, None, None] * np.ones((1, 2, 4), np.float32)
    ds = xr.Dataset(
        {"response": (("trial", "channel", "time"), values, {"units": "uV"})},
        {"image_id": ("trial", ids), "channel": ["O1", "O2"], "time": np.arange(4) / 10},
    )
    given = ds.ned.perturb(noise="shuffle").response.values[:, 0, 0].astype(int)
    partner = {image: set(ids[given[ids == image]]) for image in "abc"}
    assert all(len(of) == 1 and image not in of for image, of in partner.items())
    assert len(set().union(*partner.values())) == 3
    # Trials of an image are given different trials as long as there are any.
    for image in "abc":
        there = (ids == next(iter(partner[image]))).sum()
        assert len(set(given[ids == image])) == min(there, (ids == image).sum())


def test_the_mean_and_zero():
    ds = eeg().expand_dims(repetition=3, axis=2).copy(deep=True)
    ds["response"] = ds.response + xr.DataArray([0, 1, 5], dims="repetition").astype("f4")
    ds["response"].attrs["units"] = "uV"
    ds = ds.chunk(image=4)
    mean = ds.ned.perturb(channels="Oz", noise="mean").response.values
    expected = ds.response.values.astype(np.float64).mean((1, 2))[:, 3]
    np.testing.assert_allclose(mean[:, 5, 1, 3], expected, rtol=1e-6)
    assert not ds.ned.perturb(channels="Oz", noise="zero").response.values[:, :, :, 3].any()


def test_a_missing_sample_leaves_the_others_of_its_trace_their_noise():
    ds = eeg(n_images=3).copy(deep=True)
    ds["response"][:, :, 3, 7] = np.nan
    before = ds.response.values[:, :, 3].astype(np.float64)
    after = ds.ned.perturb(channels="Oz").response.values[:, :, 3].astype(np.float64)
    np.testing.assert_array_equal(np.isnan(after), np.isnan(before))
    error = np.nanstd(before, axis=-1, ddof=1) / np.sqrt(N_TIMES)
    z = (np.nanmean(after, axis=-1) - np.nanmean(before, axis=-1)) / error
    assert np.abs(z).max() < 4


@pytest.mark.parametrize("noise", [*NOISES, "gaussian"])
def test_absent_repetitions_stay_absent(noise):
    ds = eeg(n_images=5, n_times=20).expand_dims(repetition=2, axis=2).copy(deep=True)
    ds["response"] = ds.response.where(
        (ds.image_id != "t:03") | (xr.DataArray([1, 0], dims="repetition") > 0)
    )
    options = {"sd": 2.0} if noise == "gaussian" else {}
    after = ds.ned.perturb(channels="Oz", noise=noise, **options).response.values[:, :, :, 3]
    assert np.isnan(after[:, 3, 1]).all()
    given = np.isnan(after).all(-1).sum()
    # A shuffled trial may be given one that is absent.
    assert given == (4 if noise == "shuffle" else 2)


def test_noise_of_a_given_size():
    ds = eeg()
    with pytest.raises(SelectionError, match="in uV.*sd=5.0"):
        ds.ned.perturb(noise="gaussian")
    after = ds.ned.perturb(noise="gaussian", sd=5.0)
    assert after.response.values.std() == pytest.approx(5, rel=0.02)
    assert abs(after.response.values.mean()) < 0.1
    assert json.loads(after.attrs["nedx_perturbation"])[0]["sd"] == 5
    ds.response.attrs["units"] = "1"
    assert ds.ned.perturb(noise="gaussian").response.values.std() == pytest.approx(1, rel=0.02)


@settings(max_examples=25)
@given(
    noise=st.sampled_from(NOISES),
    chunks=st.fixed_dictionaries(
        {
            "image": st.integers(1, 12),
            "subject": st.integers(1, 2),
            "channel": st.integers(1, 8),
            "time": st.integers(1, 20),
        }
    ),
)
def test_chunks_make_no_difference(noise, chunks):
    ds = eeg(n_times=20)
    options = {"channels": ["O2", "Pz"], "noise": noise, "seed": 11}
    whole = ds.ned.perturb(**options).response.values
    cut = ds.chunk(chunks).ned.perturb(**options).response.values
    if noise == "mean":
        np.testing.assert_allclose(cut, whole, atol=1e-6 * np.abs(whole).max())
    else:
        np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("noise", ["matched", "phase"])
def test_selections_and_order_make_no_difference(noise):
    ds = eeg()
    whole = ds.ned.perturb(region="visual", noise=noise).response
    images, channels = [7, 2, 9], [4, 1, 2]
    part = ds.isel(image=images, channel=channels)
    first = part.ned.perturb(region="visual", noise=noise).response
    np.testing.assert_array_equal(first, whole.isel(image=images, channel=channels))
    alone = ds.isel(subject=1).ned.perturb(region="visual", noise=noise).response
    np.testing.assert_array_equal(alone, whole.isel(subject=1))


def test_strings_as_zarr_gives_them_make_no_difference():
    ds = eeg(n_times=20)
    strings = ds["image_id"].values.astype(np.dtypes.StringDType())
    found = ds.assign_coords(image_id=("image", strings)).ned.perturb(region="visual").response
    np.testing.assert_array_equal(found, ds.ned.perturb(region="visual").response)


def test_seeds_differ_and_repeat():
    ds = eeg()
    first, again, other = (ds.ned.perturb(seed=seed).response.values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_trials_and_repetitions_have_noise_of_their_own():
    ds = eeg(n_images=3).isel(subject=0).rename(image="trial")
    ds = ds.assign_coords(image_id=("trial", ["a", "a", "b"]))
    ds["response"] = ds.response * 0 + np.arange(N_TIMES, dtype="f4")
    noise = ds.ned.perturb(channels="Oz").response.values[:, 3]
    assert np.unique(noise, axis=0).shape == noise.shape
    repeated = eeg(n_images=2).expand_dims(repetition=2, axis=2)
    noise = repeated.ned.perturb(channels="Oz").response.values[:, :, :, 3].reshape(8, -1)
    assert np.unique(noise, axis=0).shape == noise.shape


def test_generators_are_those_of_numpy():
    words = np.array([[1, 2, 3], [2**64 - 1, 0, 7]], np.uint64)
    for row, generator in zip(words, kernels.streams(5, words), strict=True):
        key = np.random.SeedSequence(5).generate_state(2, np.uint64)
        counter = np.concatenate([[np.uint64(0)], row])
        own = np.random.Generator(np.random.Philox(key=key, counter=counter))
        np.testing.assert_array_equal(generator.standard_normal(9), own.standard_normal(9))


@pytest.mark.parametrize("noise", NOISES)
def test_nothing_is_computed_when_called(noise):
    ds = eeg().set_xindex("image_id").chunk(image=4)
    with computes_at_most(0):
        hurt = ds.ned.perturb(region="visual", noise=noise)
    assert hurt.response.chunks is not None
    with computes_at_most(1):
        hurt.response.isel(image=3).compute()


def test_what_was_done_is_recorded_and_what_was_found_before_is_left_out():
    ds = eeg().assign(noise_ceiling=("channel", np.ones(8)), rank=("image", np.ones(12)))
    once = ds.ned.perturb(region="visual", time=(0.1, 0.3), seed=np.int64(4))
    twice = once.ned.perturb(channels="Cz", noise="zero")
    said = json.loads(twice.attrs["nedx_perturbation"])
    assert said[0] == {
        "noise": "matched",
        "seed": 4,
        "region": "visual",
        "channels": ["Pz", "O1", "Oz", "O2"],
        "time": [0.1, 0.3],
    }
    assert said[1]["channels"] == ["Cz"]
    history = twice.attrs["history"].splitlines()
    assert history[0] == "2026-01-01 recorded"
    assert len(history) == 3
    assert '"noise": "zero"' in history[2]
    assert twice.response.attrs == ATTRS
    assert not {"noise_ceiling", "rank"} & set(twice.variables)
    assert "nedx_perturbation" not in ds.attrs


def test_what_is_perturbed_can_be_stored(tmp_path):
    ds = nedx.parse(eeg(n_images=6, n_times=30))
    ds.ned.to_zarr(tmp_path / "clean.zarr", keep_bits=None)
    opened = nedx.open(tmp_path / "clean.zarr")
    with computes_at_most(0):
        hurt = opened.ned.perturb(region="visual", seed=2)
    hurt.ned.to_zarr(tmp_path / "hurt.zarr", keep_bits=None)
    again = nedx.open(tmp_path / "hurt.zarr")
    np.testing.assert_array_equal(
        again.response.values, ds.ned.perturb(region="visual", seed=2).response.values
    )
    assert json.loads(again.attrs["nedx_perturbation"])[0]["seed"] == 2
    again.ned.validate()


def test_a_real_recording_loses_what_its_trials_share(shared_data):
    path = shared_data / "eeglab_sample" / "eeglab_data.set"
    if not path.is_file():
        pytest.skip(f"the sample of EEGLAB is not at {path}")
    raw = mne.io.read_raw_eeglab(path, preload=True, verbose="error")
    found, _ = mne.events_from_annotations(raw, {"square": 1}, verbose="error")
    ds = epochs(raw, found, EpochSettings(-0.1, 0.5, band=(1.0, 30.0)), names={1: "square"})
    trials = ds.response.sel(channel="FC1").values.astype(np.float64)
    for noise in ("matched", "phase"):
        hurt = ds.ned.perturb(channels="FC1", noise=noise).response
        rest = {"channel": ds.channel.values != "FC1"}
        np.testing.assert_array_equal(hurt[rest], ds.response[rest])
        after = hurt.sel(channel="FC1").values.astype(np.float64)
        # Nothing is common to the trials any more but their means: the evoked response is gone.
        evoked = [np.std((x - x.mean(-1, keepdims=True)).mean(0)) for x in (trials, after)]
        assert evoked[1] < 0.25 * evoked[0]
        if noise == "phase":
            power = [np.abs(np.fft.rfft(x, axis=-1)) ** 2 for x in (trials, after)]
            np.testing.assert_allclose(power[1].mean(0), power[0].mean(0), rtol=1e-4)


def test_rois_and_responses_without_times():
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {"response": (("image", "voxel"), rng.standard_normal((6, 5)).astype("f4"))},
        {
            "image_id": ("image", list("abcdef")),
            "voxel": np.arange(5),
            "roi": ["V1", "FFA-1"],
            "roi_mask": (("roi", "voxel"), np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], bool)),
        },
    )
    before = ds.response.values
    zero = ds.ned.perturb(region="FFA-1", noise="zero")
    assert not zero.response.values[:, 3:].any()
    np.testing.assert_array_equal(zero.response.values[:, :3], before[:, :3])
    assert json.loads(zero.attrs["nedx_perturbation"])[0]["n_voxel"] == 2
    shuffled = ds.ned.perturb(region="V1", noise="shuffle").response.values
    np.testing.assert_array_equal(np.sort(shuffled[:, 0]), np.sort(before[:, 0]))
    assert ds.ned.perturb(noise="gaussian").response.shape == before.shape
    with pytest.raises(SelectionError, match="there is no time axis.*'shuffle'"):
        ds.ned.perturb(region="V1")


def test_every_subject_of_a_tree():
    one = eeg().isel(subject=0, drop=True)
    tree = xr.DataTree.from_dict(
        {f"/{name}": one.assign_attrs(subject=name) for name in ("sub-01", "sub-02")}
    )
    hurt = tree.ned.perturb(channels="Oz")
    first, second = (hurt[f"sub-0{n}"]["response"].values for n in (1, 2))
    assert (first[:, 3] != second[:, 3]).all()
    np.testing.assert_array_equal(first[:, 4:], second[:, 4:])
    same = one.assign_coords(subject="sub-02").ned.perturb(channels="Oz").response.values
    np.testing.assert_array_equal(second, same)
    # Recordings that are imported say whose they are in the attribute of the schema.
    imported = one.assign_attrs(subject_ids=["sub-02"]).ned.perturb(channels="Oz").response.values
    np.testing.assert_array_equal(second, imported)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": "Ozz"}, "unknown channel 'Ozz': did you mean 'Oz'"),
        ({"region": "visuel"}, "did you mean 'visual'"),
        ({"channels": "Oz", "region": "visual"}, "not both"),
        ({"noise": "macthed"}, "did you mean 'matched'.*phase"),
        ({"time": (2, 3)}, "no sample lies in the time window 2 to 3 s"),
        ({"time": 0.1}, "holds one sample"),
        ({"time": (0.1, 0.104), "noise": "phase"}, "holds two samples"),
        ({"seed": -1}, "whole number from 0, not -1"),
        ({"seed": 0.5}, "whole number"),
        ({"sd": 2.0}, "noise='gaussian'"),
        ({"sd": -2.0, "noise": "gaussian"}, "above 0"),
    ],
)
def test_bad_requests(options, says):
    with computes_at_most(0), pytest.raises(SelectionError, match=says):
        eeg().chunk(image=2).ned.perturb(**options)


def test_bad_datasets():
    with pytest.raises(SchemaError, match="it needs 'response'"):
        nedx.perturb(eeg().rename(response="x"))
    with pytest.raises(SelectionError, match="two images or more"):
        eeg().isel(image=[0]).ned.perturb(noise="shuffle")
    with pytest.raises(SchemaError, match="no neuroids"):
        eeg().isel(channel=0, drop=True).ned.perturb()
