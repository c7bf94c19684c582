"""Epochs against MNE's own functions, called plainly one after the other."""

from __future__ import annotations

import mne
import numpy as np
import pytest

import nedx
from nedx.errors import SelectionError
from nedx.preprocessing.epochs import EpochSettings, epochs
from tests.laziness import computes_at_most

CHANNELS = ["Fp1", "Fp2", "F3", "F4", "C3", "Cz", "C4", "P3", "Pz", "P4", "O1", "Oz", "O2"]
QUIET = {"verbose": "error"}


@pytest.fixture
def raw(rng):
    info = mne.create_info([*CHANNELS, "stim"], 1000.0, ["eeg"] * len(CHANNELS) + ["stim"])
    data = np.cumsum(rng.normal(size=(len(CHANNELS) + 1, 12_000)), 1) * 1e-6
    made = mne.io.RawArray(data, info, first_samp=500, **QUIET)
    return made.set_montage("easycap-M1")


@pytest.fixture
def events(rng):
    onsets = np.arange(900, 11_000, 700)
    return np.column_stack([onsets, np.zeros_like(onsets), rng.integers(1, 5, onsets.size)])


IMAGES = {n: f"things:im_{n:02d}" for n in range(1, 5)}


def plain(raw, events, *, band=None, tmin, tmax, csd=False, rate=None, baseline=None):
    kept = raw.copy().load_data().pick("eeg")
    if band:
        kept.filter(*band, **QUIET)
    cut = mne.Epochs(kept, events, tmin=tmin, tmax=tmax, baseline=baseline, preload=True, **QUIET)
    if csd:
        cut = mne.preprocessing.compute_current_source_density(
            cut, lambda2=1e-5, stiffness=4, **QUIET
        )
    if rate:
        cut.resample(rate, **QUIET)
    return cut


def test_potentials_in_microvolts(raw, events):
    settings = EpochSettings(-0.2, 0.8, baseline=(None, 0), sampling_frequency=100)
    before = raw.get_data().copy()
    ds = epochs(raw, events, settings, images=IMAGES, subject=2)
    nedx.validate(ds)
    truth = plain(raw, events, tmin=-0.2, tmax=0.8, rate=100, baseline=(None, 0))
    np.testing.assert_allclose(ds.response.values, truth.get_data() * 1e6, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ds.time.values, truth.times)
    assert ds.time.attrs["sampling_frequency"] == 100
    assert ds.response.attrs["units"] == "uV"
    assert ds.image_id.values.tolist() == [IMAGES[n] for n in events[:, 2]]
    np.testing.assert_allclose(ds.onset.values, (events[:, 0] - 500) / 1000)
    for image in IMAGES.values():
        seen = ds.repetition.values[ds.image_id.values == image]
        assert seen.tolist() == list(range(len(seen)))
    np.testing.assert_array_equal(raw.get_data(), before)
    done = [step["step"] for step in ds.attrs["preprocessing"]]
    assert done == ["epochs", "baseline", "resample"]


def test_baseline_zscores_of_current_source_density(raw, events, monkeypatch):
    """The steps of NED and BERG, in batches of 3 epochs."""
    monkeypatch.setattr("nedx.preprocessing.epochs._BATCH_VALUES", 3 * len(CHANNELS) * 701)
    settings = EpochSettings(
        -0.1,
        0.6,
        band=(1.0, 40.0),
        csd=True,
        sampling_frequency=200,
        last_baseline=(None, 0),
        last_mode="zscore",
    )
    ds = epochs(raw, events, settings, images=IMAGES)
    truth = plain(raw, events, band=(1.0, 40.0), tmin=-0.1, tmax=0.6, csd=True, rate=200)
    values = mne.baseline.rescale(truth.get_data(), truth.times, (None, 0), "zscore", **QUIET)
    assert ds.response.shape == (len(events), 13, 140)
    np.testing.assert_allclose(ds.response.values, values, rtol=1e-4, atol=1e-5)
    attrs = ds.response.attrs
    assert (attrs["units"], attrs["normalization_scope"], attrs["transform"]) == (
        "1",
        "baseline",
        "csd",
    )
    nedx.validate(ds)
    steps = {step["step"]: step for step in ds.attrs["preprocessing"]}
    assert list(steps) == ["filter", "epochs", "csd", "resample", "baseline"]
    assert (steps["csd"]["lambda2"], steps["csd"]["stiffness"]) == (1e-5, 4)
    assert steps["baseline"] == {
        "step": "baseline",
        "scope": "trial",
        "mode": "zscore",
        "window": [None, 0],
    }


def test_current_source_density_has_its_unit(raw, events):
    ds = epochs(raw, events, EpochSettings(-0.1, 0.3, csd=True), images=IMAGES)
    truth = plain(raw, events, tmin=-0.1, tmax=0.3, csd=True).get_data()
    np.testing.assert_allclose(ds.response.values, truth * 1e6, rtol=1e-5, atol=1e-3)
    assert ds.response.attrs["units"] == "uV m-2"


def test_a_recording_of_eeglab(shared_data):
    """The evoked response of the sample peaks at FC1 398 ms, 29.6 uV (1-30 Hz)."""
    path = shared_data / "eeglab_sample" / "eeglab_data.set"
    if not path.is_file():
        pytest.skip(f"the sample of EEGLAB is not at {path}")
    raw = mne.io.read_raw_eeglab(path, preload=True, **QUIET)
    found, _ = mne.events_from_annotations(raw, {"square": 1}, **QUIET)
    assert len(found) == 80
    settings = EpochSettings(-0.1, 0.5, band=(1.0, 30.0), baseline=(None, 0))
    ds = epochs(raw, found, settings, names={1: "square"})
    nedx.validate(ds)
    assert ds.attrs["stimulus_identity"] == "none"
    assert set(ds.category.values) == {"square"}
    mean = ds.response.mean("trial").values
    channel, time = np.unravel_index(np.abs(mean).argmax(), mean.shape)
    assert ds.channel.values[channel] == "FC1"
    assert ds.time.values[time] == pytest.approx(0.398, abs=0.001)
    assert mean[channel, time] == pytest.approx(29.6, abs=0.05)


@pytest.fixture
def on_disk(raw, tmp_path):
    raw.save(tmp_path / "recording_raw.fif", fmt="double", **QUIET)
    return mne.io.read_raw_fif(tmp_path / "recording_raw.fif", preload=False, **QUIET)


def test_only_trials_asked_for_are_read(raw, events, on_disk, monkeypatch):
    monkeypatch.setattr("nedx.preprocessing.epochs._BATCH_VALUES", 2 * len(CHANNELS) * 1001)
    read = []
    whole = mne.io.Raw._read_segment_file
    monkeypatch.setattr(
        mne.io.Raw,
        "_read_segment_file",
        lambda self, data, idx, fi, start, stop, *args: (
            read.append(stop - start) or whole(self, data, idx, fi, start, stop, *args)
        ),
    )
    settings = EpochSettings(-0.2, 0.8, baseline=(None, 0))
    with computes_at_most(0):
        ds = epochs(on_disk, events, settings, images=IMAGES)
    assert not read
    assert ds.response.chunksizes["trial"][:-1] == (2,) * (len(events) // 2)
    truth = plain(raw, events, tmin=-0.2, tmax=0.8, baseline=(None, 0)).get_data() * 1e6
    np.testing.assert_allclose(ds.response[4].values, truth[4], rtol=1e-5, atol=1e-4)
    assert 0 < sum(read) < 3 * 1001
    np.testing.assert_allclose(ds.response.values, truth, rtol=1e-5, atol=1e-4)
    assert not on_disk.preload


def test_a_filtered_recording_is_filtered_once_for_every_computation(events, on_disk, raw):
    """Computing twice gives the same: what is filtered is a copy."""
    settings = EpochSettings(-0.1, 0.3, band=(1.0, 40.0))
    ds = epochs(on_disk, events, settings, images=IMAGES)
    truth = plain(raw, events, band=(1.0, 40.0), tmin=-0.1, tmax=0.3).get_data() * 1e6
    for _ in range(2):
        np.testing.assert_allclose(ds.response.values, truth, rtol=1e-4, atol=1e-4)
    assert not on_disk.preload


def test_what_cannot_be_cut(raw, events):
    settings = EpochSettings(-0.2, 0.8)
    with pytest.raises(SelectionError, match="2 event numbers have no image, the first is 3"):
        epochs(
            raw, np.array([[900, 0, 1], [1600, 0, 3], [2300, 0, 4]]), settings, images={1: "a:b"}
        )
    late = np.array([[900, 0, 1], [12_400, 0, 1]])
    with pytest.raises(SelectionError, match=r"1 epochs reach beyond.* at 11.9 s"):
        epochs(raw, late, settings, images=IMAGES)
    with pytest.raises(SelectionError, match="same sample"):
        epochs(raw, late[[0, 0]], settings, images=IMAGES)
    with pytest.raises(SelectionError, match="no events"):
        epochs(raw, np.empty((0, 3), int), settings, images=IMAGES)
    with pytest.raises(SelectionError, match="no channels are of type 'mag'"):
        epochs(raw, events, settings, images=IMAGES, channel_type="mag")
    band = (0.5, raw.info["sfreq"] / 2)
    with pytest.raises(SelectionError, match="beyond .* half the sampling rate"):
        epochs(raw, events, EpochSettings(-0.1, 0.3, band=band), images=IMAGES)
    bare = raw.copy().set_montage(None)
    with pytest.raises(SelectionError, match="13 have none, the first is Fp1.*set_montage"):
        epochs(bare, events, EpochSettings(-0.1, 0.3, csd=True), images=IMAGES)
    broken = raw.copy()
    broken._data[3, 2000:2003] = np.nan
    with pytest.raises(SelectionError, match="channel F4 holds 3 values .* at 2 s"):
        epochs(broken, events, settings, images=IMAGES).compute()
    flat = raw.copy()
    flat._data[3] = 1.0
    zscored = EpochSettings(-0.2, 0.8, last_baseline=(None, 0), last_mode="zscore")
    with pytest.raises(SelectionError, match="constant in the baseline"):
        epochs(flat, events, zscored, images=IMAGES).compute()
    with pytest.raises(SelectionError, match="are empty"):
        EpochSettings(0.5, 0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"last_baseline": (None, 0.0)}, "holds no time of epochs from 0.1 to 0.5 s"),
        ({"baseline": (0.3, 0.2)}, "holds no time of epochs"),
        ({"sampling_frequency": 0.0}, "not above 0"),
        ({"crop": 0.5}, "leaves nothing of epochs to 0.5 s"),
    ],
)
def test_settings_that_leave_nothing_are_refused_before_work(settings, words):
    with pytest.raises(SelectionError, match=words):
        EpochSettings(0.1, 0.5, **settings)
