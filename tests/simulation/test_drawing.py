"""Images drawn from the law of the simulated EEG, against the simulation's own parameters."""

import dask
import numpy as np
import pytest

import nedx
from nedx.errors import SelectionError
from nedx.simulation import eeg


@pytest.fixture(scope="module")
def drawn():
    return nedx.simulate_eeg(1000, repetitions=2, seed=3)


def test_features_have_the_mean_and_covariance_of_the_training_images(drawn):
    truth = nedx.open("sim-eeg", group="truth")
    known = truth["features"].values[truth["partition"].values == "train"].astype(float)
    x = nedx.simulate_eeg(20_000)["features"].values
    spread = known.std(0, ddof=1)
    np.testing.assert_allclose(x.mean(0), known.mean(0), atol=5 * spread.max() / np.sqrt(20_000))
    scale = np.outer(spread, spread)
    np.testing.assert_allclose(np.cov(x.T) / scale, np.cov(known.T) / scale, atol=0.06)


def test_trials_are_the_linear_map_under_the_noise_of_each_channel(drawn):
    weights, intercept = eeg.linear_map("sub-01")
    signal = np.einsum("ctf,if->ict", weights, drawn["features"].values) + intercept
    noise = drawn["response"].values[0] - signal[:, None]
    sd = eeg.noise_sd("sub-01")
    np.testing.assert_allclose(noise.std(axis=(0, 1, 3)), sd, rtol=0.03)
    assert np.abs(noise.mean((0, 1))).max() < 6 * sd.max() / np.sqrt(2000)
    lagged = (noise[..., 1:] * noise[..., :-1]).mean() / (noise**2).mean()
    assert lagged == pytest.approx(0.9, abs=0.01)
    first, second = noise[:, 0].reshape(-1), noise[:, 1].reshape(-1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_noise_is_correlated_between_near_channels(drawn):
    weights, intercept = eeg.linear_map("sub-01")
    signal = np.einsum("ctf,if->ict", weights, drawn["features"].values) + intercept
    noise = (drawn["response"].values[0, :, 0] - signal)[:, :, ::20]
    flat = np.moveaxis(noise, 1, 0).reshape(noise.shape[1], -1)
    places = np.stack([drawn[axis].values for axis in "xyz"], axis=1)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    np.testing.assert_allclose(np.corrcoef(flat), np.exp(-distance / 0.06), atol=0.08)


def test_any_piece_is_the_same_and_computes_its_own_blocks_only(drawn):
    whole = drawn["response"].values
    piece = drawn.isel(image=slice(250, 320))["response"]
    np.testing.assert_array_equal(piece.values, whole[:, 250:320])
    (graph,) = dask.optimize(piece.data)
    blocks = [key for key in graph.__dask_graph__() if str(key).count("drawn-eeg")]
    assert 0 < len(blocks) < drawn["response"].data.npartitions
    fewer = nedx.simulate_eeg(130, repetitions=2, seed=3)
    np.testing.assert_array_equal(fewer["response"].values, whole[:, :130])
    np.testing.assert_array_equal(fewer["features"].values, drawn["features"].values[:130])
    other = nedx.simulate_eeg(130, repetitions=2, seed=4)
    assert not np.allclose(other["features"].values, fewer["features"].values)


def test_it_looks_like_the_simulated_store():
    drawn, store = nedx.simulate_eeg(25, subject=[1, 3]), nedx.open("sim-eeg", subject=[1, 3])
    assert drawn["response"].dims == store["response"].dims
    for name in ("subject", "channel", "time", "region", "repetition", "x"):
        np.testing.assert_array_equal(drawn[name].values, store[name].values)
    assert drawn["time"].attrs["sampling_frequency"] == 200.0
    assert drawn["response"].attrs["units"] == "uV"
    assert drawn.attrs["source"] == "synthetic"
    assert list(drawn["image_id"].values[[0, 24]]) == ["drawn:000000", "drawn:000024"]
    assert list(drawn["category"].values[[9, 10]]) == ["drawn-0000", "drawn-0001"]
    nedx.validate(drawn)
    noise = drawn["response"].values - drawn["response"].values.mean(2, keepdims=True)
    assert abs(np.corrcoef(noise[0].reshape(-1), noise[1].reshape(-1))[0, 1]) < 0.02


def test_writing_and_opening_keeps_it(tmp_path):
    drawn = nedx.simulate_eeg(120, repetitions=1)
    nedx.to_zarr(drawn, tmp_path / "drawn.zarr", dtype="float16")
    again = nedx.open_store(tmp_path / "drawn.zarr")
    np.testing.assert_allclose(again["response"].values, drawn["response"].values, atol=0.03)
    assert again["features"].sizes == {"image": 120, "feature": 64}


@pytest.mark.parametrize("wrong", [{"n_images": 0}, {"n_images": 5, "repetitions": 0}])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(SelectionError, match="1 or more"):
        nedx.simulate_eeg(**wrong)


def test_an_unknown_subject_is_named():
    with pytest.raises(SelectionError, match="sub-09.*there are: sub-01|did you mean"):
        nedx.simulate_eeg(5, subject=9)


def test_subjects_are_asked_for_as_elsewhere():
    twice = nedx.simulate_eeg(5, subject=[np.int64(2), "sub-02"])
    assert twice.subject.values.tolist() == ["sub-02"]
    with pytest.raises(SelectionError, match="subject= is empty"):
        nedx.simulate_eeg(5, subject=[])
    with pytest.raises(SelectionError, match="from 0, not -1"):
        nedx.simulate_eeg(5, seed=-1)
