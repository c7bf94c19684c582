"""The embedded encoders: better than chance, never above the ceiling, and what they say of it."""

from __future__ import annotations

import numpy as np
import pytest

from nedx.encoding.model import load_model
from nedx.simulation import MODELS, generate, open_simulation


@pytest.fixture(scope="module")
def models():
    return {name: load_model(generate(name).url) for name in MODELS}


def test_they_say_that_they_were_fitted_to_a_simulation(models):
    for name, model in models.items():
        assert model.recipe.model_id == name
        assert model.recipe.training_source == "synthetic"
        assert "imulated" in model.recipe.training_data
        assert model.subjects == ("sub-01", "sub-02", "sub-03")


def _median(ds, name, roi):
    mask = ds["roi_mask"].isel(roi=list(ds["roi"].values).index(roi))
    return float(ds[name].where(mask).median())


@pytest.mark.parametrize("name", ["sim-fmri-gabor", "sim-fmri-fsaverage5-gabor"])
def test_accuracy_lies_between_chance_and_the_ceiling(models, name):
    for ds in models[name].members.values():
        for roi, least in (("V1", 0.55), ("hV4", 0.5), ("FFA-1", 0.25)):
            accuracy, ceiling = (
                _median(ds, n, roi) for n in ("encoding_accuracy", "noise_ceiling")
            )
            assert least < accuracy < np.sqrt(ceiling)


def test_eeg_accuracy_follows_the_evoked_response(models):
    (ds,) = models["sim-eeg-gabor"].members.values()
    accuracy = ds["encoding_accuracy"].transpose("subject", "channel", "time").values
    # Ceilings estimated from 4 repeats scatter; the model is held against the true ones.
    ceiling = open_simulation("sim-eeg", group="truth")["noise_ceiling"].values
    oz = list(ds["channel"].values).index("Oz")
    before = ds["time"].values < 0
    assert np.abs(accuracy[..., before]).mean() < 0.08
    assert accuracy[:, oz].max() > 0.6
    strong = ceiling > 0.2
    best = np.sqrt(ceiling[strong])
    assert 0.5 * best.mean() < accuracy[strong].mean() < best.mean()
    # Over 200 images r scatters by up to 0.07 about its expectation.
    assert np.max(accuracy[strong] - best) < 0.25


def test_encode_gives_the_accuracy_that_is_stated(models):
    from nedx.encoding.encode import encode

    measured = open_simulation("sim-fmri", subject=1, roi="V1")
    test = measured["partition"].values == "test"
    measured = measured.isel(image=np.flatnonzero(test)[::2])
    stimuli = open_simulation("sim-images")
    stimuli = stimuli.isel(image=np.flatnonzero(stimuli["partition"].values == "test")[::2])
    assert list(stimuli["image_id"].values) == list(measured["image_id"].values)
    model = models["sim-fmri-gabor"]
    predicted = encode(stimuli[["pixels"]], model, subject=1, roi="V1")["response"]
    a = predicted.squeeze().transpose("image", "voxel").values
    b = measured["response"].mean("repetition").transpose("image", "voxel").values
    found = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]
    stated = model.sel(subject=1, roi="V1").members["sub-01"]["encoding_accuracy"].values
    assert np.mean(found) == pytest.approx(np.mean(stated), abs=0.03)
