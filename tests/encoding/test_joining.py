"""Models of single subjects used as one, and models that predict repetitions."""

from __future__ import annotations

import numpy as np
import pytest

import nedx
from nedx.encoding.joining import join_models
from nedx.errors import ModelError
from tests.encoding.truth import encoder, fit, random_pixels, stimuli
from tests.laziness import computes_at_most

CHANNELS, TIMES = np.array(["Oz", "Pz", "Cz"], dtype=object), np.array([0.0, 0.005])
TARGETS = 4 * 3 * 2


def coords(subject: str, accuracy: float) -> dict:
    return {
        "subject": np.array([subject], dtype=object),
        "channel": CHANNELS,
        "repetition": np.arange(4, dtype=np.int16),
        "time": ("time", TIMES, {"units": "s"}),
        "encoding_accuracy": (("subject", "channel"), np.full((1, 3), accuracy, np.float32)),
    }


ATTRS = {"modality": "eeg", "normalization": "zscore", "normalization_scope": "baseline"}
DIMS = ("subject", "channel", "repetition", "time")


@pytest.fixture(scope="module")
def fits():
    return {f"sub-{i:02d}": fit(TARGETS, seed=i) for i in (1, 2)}


@pytest.fixture
def places(fits, tmp_path):
    return {
        name: encoder(
            [one], own_projection=True, dims=DIMS, coords=coords(name, 0.1 * i), **ATTRS
        ).to_zarr(tmp_path / f"{name}.zarr")
        for i, (name, one) in enumerate(fits.items(), 1)
    }


@pytest.fixture
def expected(fits):
    """Responses (subject, image, repetition, channel, time)."""
    flat = [one.predict(random_pixels(20)).reshape(20, 3, 4, 2) for one in fits.values()]
    return np.stack(flat).transpose(0, 1, 3, 2, 4)


def close(found, truth):
    assert found.shape == truth.shape
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


def test_joined_models_predict_what_each_does_alone(places, expected):
    joined = join_models(places)
    assert joined.subjects == ("sub-01", "sub-02")
    with computes_at_most(0):
        encoded = stimuli().ned.encode(joined)
    response = encoded["response"]
    assert response.dims == ("subject", "image", "repetition", "channel", "time")
    close(response.values, expected)
    np.testing.assert_allclose(encoded["encoding_accuracy"][:, 0], [0.1, 0.2])
    nedx.validate(nedx.parse(encoded))


def test_a_selection_is_a_slice_of_the_whole(places, expected):
    whole = stimuli().ned.encode(join_models(places))
    chosen = stimuli().ned.encode(join_models(places), subject=2, channel=["Cz", "Oz"])
    close(chosen["response"].values, expected[1:][:, :, :, [2, 0]])
    after = whole.isel(repetition=[3, 1], image=slice(4, 9)).ned.sel(channel="Pz", time=0.005)
    close(after["response"].values, expected[:, 4:9][:, :, [3, 1]][..., [1], :][..., [1]])


def test_only_what_is_selected_after_the_fact_is_multiplied(places, monkeypatch):
    from nedx.encoding import kernels

    widths = []
    original = kernels.read_out

    def spied(components, readout, device):
        widths.append(readout.weights.shape[0])
        return original(components, readout, device)

    monkeypatch.setattr(kernels, "read_out", spied)
    whole = stimuli().ned.encode(join_models(places))
    whole["response"].isel(subject=[0], repetition=[2], time=[1], image=slice(5)).compute()
    assert set(widths) == {3}


def test_a_joined_model_is_stored_as_one(places, expected, tmp_path):
    join_models(places).to_zarr(tmp_path / "both.zarr")
    stored = nedx.load_model(tmp_path / "both.zarr")
    assert stored.subjects == ("sub-01", "sub-02")
    close(stimuli().ned.encode(stored)["response"].values, expected)


def test_one_subject_needs_no_joining(places, expected):
    one = join_models({"sub-02": places["sub-02"]})
    close(stimuli().ned.encode(one)["response"].values, expected[1:])


def test_models_that_differ_are_refused(places, fits, tmp_path):
    other = {**coords("sub-03", 0.3), "channel": np.array(["Oz", "Pz", "C1"], dtype=object)}
    model = encoder([fits["sub-01"]], own_projection=True, dims=DIMS, coords=other, **ATTRS)
    places["sub-03"] = model.to_zarr(tmp_path / "other.zarr")
    with pytest.raises(ModelError, match="sub-03 .* other channels"):
        join_models(places)
