"""Simulated EEG: where the channels are, when the components peak, what the noise is."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.simulation import eeg, montage, open_simulation

# Positions in mm of MNE's montage standard_1005 (head of 95 mm, ASA electrode file).
STANDARD_1005 = {
    "Fp1": (-29.4, 83.9, -7.0),
    "F7": (-70.3, 42.5, -11.4),
    "F3": (-50.2, 53.1, 42.2),
    "FC5": (-77.2, 18.6, 24.5),
    "FT9": (-84.1, 14.6, -50.4),
    "C3": (-65.4, -11.6, 64.4),
    "Cz": (0.4, -9.2, 100.2),
    "T8": (85.1, -15.0, -9.5),
    "CP2": (38.4, -47.1, 90.7),
    "P4": (55.7, -78.6, 56.6),
    "Pz": (0.3, -81.1, 82.6),
    "PO8": (55.7, -97.6, 2.7),
    "POz": (0.2, -102.2, 50.6),
    "Oz": (0.1, -114.9, 14.7),
    "TP10": (86.2, -47.0, -45.9),
}


def test_channels_are_those_of_things_eeg2_in_order():
    assert len(montage.CHANNELS) == len(set(montage.CHANNELS)) == 63
    assert montage.CHANNELS[:5] == ("Fp1", "F3", "F7", "FT9", "FC5")
    assert montage.CHANNELS[11] == "Pz"
    assert montage.CHANNELS[-1] == "AF8"
    assert "Fz" not in montage.CHANNELS


def test_channels_lie_on_the_head_left_mirrors_right():
    places = montage.positions()
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 0.095, rtol=1e-12)
    by_name = dict(zip(montage.CHANNELS, places, strict=True))
    for name, place in by_name.items():
        digits = name.lstrip("ACFOPTpz")
        if not digits:
            assert place[0] == pytest.approx(0, abs=1e-12)
            continue
        other = name.removesuffix(digits) + str(int(digits) + (1 if int(digits) % 2 else -1))
        np.testing.assert_allclose(by_name[other], place * [-1, 1, 1], atol=1e-12)


def test_channels_point_where_the_standard_montage_has_them():
    by_name = dict(zip(montage.CHANNELS, montage.positions(), strict=True))
    names = list(STANDARD_1005)
    published = np.array([STANDARD_1005[name] for name in names])
    # The centre of the sphere that fits the published positions best.
    design = np.column_stack([2 * published, np.ones(len(published))])
    centre = np.linalg.lstsq(design, (published**2).sum(1), rcond=None)[0][:3]
    theirs = published - centre
    ours = np.array([by_name[name] for name in names])
    cosine = (theirs * ours).sum(1) / np.linalg.norm(theirs, axis=1) / 0.095
    assert np.rad2deg(np.arccos(cosine)).max() < 12


def test_components_peak_when_and_where_they_should():
    truth = open_simulation("sim-eeg", group="truth")
    evoked = truth["noise_free"].isel(subject=0).astype("f4").mean("image").load()
    time = evoked["time"].values
    channel = {str(name): i for i, name in enumerate(evoked["channel"].values)}
    oz, pz, fp1 = (evoked.values[channel[name]] for name in ("Oz", "Pz", "Fp1"))
    assert 0.09 <= time[oz.argmax()] <= 0.125
    assert 0.145 <= time[oz.argmin()] <= 0.185
    assert 0.3 <= time[np.where(time > 0.27, pz, -np.inf).argmax()] <= 0.45
    assert np.abs(oz).max() > 2 * np.abs(fp1).max()
    assert not truth["noise_free"].isel(time=time <= 0).values.any()


def test_response_is_linear_in_the_features():
    truth = open_simulation("sim-eeg", group="truth").isel(subject=1).load()
    predicted = np.einsum("if,ctf->ict", truth["features"].values, truth["linear_map"].values)
    predicted += truth["linear_map_intercept"].values
    signal = truth["noise_free"].values.astype("f4")
    # Both are stored with 11 bits.
    np.testing.assert_allclose(predicted, signal, atol=2e-3 * np.abs(signal).max())


def test_one_subject_becomes_another():
    truth = open_simulation("sim-eeg", group="truth")[["noise_free", "pair_into", "pair_out_of"]]
    truth = truth.load().astype("f4")
    for a, b in ((0, 1), (2, 0)):
        pair = truth["pair_into"].values[a] @ truth["pair_out_of"].values[b]
        found = np.einsum("ict,cd->idt", truth["noise_free"].values[a], pair)
        expected = truth["noise_free"].values[b]
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


def test_noise_is_what_is_stated():
    signal = np.zeros((100, 63, 140), dtype=np.float32)
    sd = eeg.noise_sd("sub-01")
    noise = eeg.add_noise(signal, sd, 2, np.random.default_rng(0))
    np.testing.assert_allclose(noise.std((0, 1, 3)), sd, rtol=0.06)
    lagged = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
    assert lagged == pytest.approx(0.9, abs=0.02)
    places = montage.positions()
    flat = np.moveaxis(noise, 2, 0).reshape(63, -1)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    np.testing.assert_allclose(np.corrcoef(flat), np.exp(-distance / 0.06), atol=0.08)


def test_repeats_tell_the_true_ceiling():
    from nedx.metrics.noise_ceiling import noise_ceiling

    # Noise that agrees with the signal by chance moves the estimate of one channel by some 0.05
    # even with 650 images, at all its times alike; over channels and subjects it evens out.
    channels = [*("P7", "P8", "PO7", "PO3", "POz", "PO4", "PO8"), *("O1", "Oz", "O2", "Pz")]
    ds = open_simulation("sim-eeg", channel=channels, time=(0.1, 0.3))
    truth = open_simulation("sim-eeg", group="truth", channel=channels, time=(0.1, 0.3))
    signal = truth["noise_free"].astype("f4").load().var("image")
    expected = signal / (signal + truth["noise_sd"].load() ** 2 / 4)
    found = noise_ceiling(ds["response"].astype("f4").load())
    assert float(np.abs(found - expected).mean()) < 0.05
    assert abs(float((found - expected).mean())) < 0.015
