"""Perturbing the simulated EEG under the best decoder there is, and what its law says of it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import nedx
from tests.insilico.ideal import PosteriorEEG, simulated_eeg


@pytest.fixture(scope="module")
def given() -> tuple[xr.Dataset, xr.Dataset, PosteriorEEG]:
    """Return averaged responses of one subject, the gallery of their images, and the decoder."""
    test, gallery, law = simulated_eeg(100)
    return test, gallery, PosteriorEEG("sub-01", law, repetitions=4)


def test_visual_channels_cost_more_than_as_many_others(given):
    test, gallery, decoder = given
    options = {"controls": 9, "seeds": [0], "n_resamples": 200}
    found = nedx.channel_experiment(None, test, decoder, gallery, **options)
    assert found.channels.values[1] == "Pz PO3 POz PO4 O1 Oz O2"
    clean, hurt = (found.top1.sel(condition=name).item() for name in ("clean", "perturbed"))
    assert clean > 0.4
    assert hurt < clean - 0.15
    against = found.sel(contrast="controls", subject="sub-01")
    assert against.top1_interval.sel(bound="upper") < -0.05
    assert against.similarity_true_p == pytest.approx(0.1)


def test_importance_follows_the_weights_of_the_decoder(given):
    test, gallery, decoder = given
    found = nedx.channel_importance(test, decoder, gallery, seeds=[0]).isel(subject=0)
    # Noise in a channel adds its variance times the squared weights to the error.
    weights = decoder.inverse.reshape(-1, test.sizes["channel"], test.sizes["time"])
    added = (weights**2).sum((0, 2)) * test["response"].var(("image", "time")).values
    assert stats.spearmanr(found.importance, added).statistic > 0.75
    signal = (decoder.weights**2).sum((1, 2))
    assert stats.spearmanr(found.importance, signal).statistic > 0.5
    first = found.isel(channel=np.argsort(-found.importance.values)[:6])
    assert (first.y < 0).all()
    assert first.importance.sum() > 0.5 * found.importance.clip(0).sum()
    ax = found.ned.plot.importance()
    assert ax.images[0].get_array().max() > 0.8 * found.importance.max().item()
    assert "similarity" in ax.figure.axes[1].get_ylabel()


def test_importance_comes_with_the_evoked_response(given):
    test, gallery, decoder = given
    found = nedx.time_importance(test, decoder, gallery, seeds=[0], width=0.1, step=0.1)
    lost = found.importance.isel(subject=0)
    assert abs(lost.sel(time=-0.05, method="nearest")) < 0.002
    weights = decoder.inverse.reshape(-1, test.sizes["channel"], test.sizes["time"])
    added = (weights**2).sum(0) * test["response"].var("image").values
    expected = added.sum(0).reshape(7, 20).sum(1)
    assert stats.spearmanr(lost, expected).statistic > 0.9
    assert lost.isel(time=[1, 2]).sum() > 0.7 * lost.sum()
    ax = found.ned.plot.importance()
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), lost, atol=1e-6)


def test_what_cannot_be_drawn():
    with pytest.raises(nedx.errors.SelectionError, match="no 'importance' to draw"):
        xr.Dataset().ned.plot.importance()
