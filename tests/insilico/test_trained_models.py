"""The channel experiment with what nedx trains: a network, and the prior behind a decoder."""

from __future__ import annotations

import numpy as np
import pytest

import nedx
from nedx.errors import ModelError
from tests.insilico.ideal import CARRIERS, Linear

ONCE = {"channels": CARRIERS, "controls": 1, "seeds": [0], "n_resamples": 50}


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear(noise_sd=1.0, subjects=("sub-01",))


def test_a_network_that_was_trained_or_is_trained_anew(linear):
    train, targets = linear.draw(800, seed=2, prefix="train")
    train = train.assign_coords(category=("image", np.repeat(np.arange(160), 5).astype(str)))
    test, gallery = linear.draw(40, seed=3)
    decoder = nedx.EEGDecoder(epochs=20, batch_size=64, device="cpu").fit(train, targets)
    found = nedx.channel_experiment(None, test, decoder, gallery, **ONCE)
    clean, hurt, control = found.top1.values.ravel()
    assert clean > 0.5
    assert hurt < 0.15
    assert control > clean - 0.2
    fresh = nedx.EEGDecoder(epochs=2, batch_size=64, device="cpu")
    options = {**ONCE, "controls": 0, "retrain": "decoder", "targets": targets}
    anew = nedx.channel_experiment(train, test, fresh, gallery, **options)
    assert anew.sizes["condition"] == 2
    assert not hasattr(fresh, "model_")
    with pytest.raises(ModelError, match="not fitted yet"):
        nedx.channel_experiment(None, test, fresh, gallery, **ONCE)


def test_the_published_experiment_trains_the_prior_anew(linear):
    train, targets = linear.draw(500, seed=2, prefix="train")
    test, gallery = linear.draw(30, seed=3)
    prior = nedx.DiffusionPrior(
        (128, 64), 0.0, steps=50, epochs=25, batch_size=64, lr=3e-3, scale="unit", groups=None
    )
    options = {**ONCE, "controls": 0, "retrain": "prior", "targets": targets, "prior": prior}
    found = nedx.channel_experiment(train, test, linear.decode, gallery, **options)
    clean, hurt = found.top1.values.ravel()
    assert clean > 0.25
    assert hurt < 0.15
    assert not hasattr(prior, "model_")
