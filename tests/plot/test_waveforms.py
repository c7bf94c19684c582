"""Waveforms: the lines that are drawn, against plain numpy."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from scipy.stats import sem

from nedx.errors import SelectionError

CHANNELS = ["O1", "Oz", "O2", "Cz"]


@pytest.fixture(autouse=True)
def _pyplot_keeps_nothing():
    yield
    assert plt.get_fignums() == []


def both():
    rng = np.random.default_rng(0)
    measured = rng.standard_normal((5, 6, 4, 10)).astype(np.float32)
    predicted = measured.mean(1) + rng.standard_normal((5, 4, 10)).astype(np.float32)
    named = {"units": "uV", "long_name": "response"}
    return xr.Dataset(
        {
            "response": (("image", "repetition", "channel", "time"), measured, named),
            "response_predicted": (("image", "channel", "time"), predicted, named),
        },
        {
            "image_id": ("image", [f"t:{i}" for i in range(5)]),
            "channel": CHANNELS,
            "time": ("time", np.arange(10) / 100, {"units": "s", "long_name": "time"}),
        },
    ).chunk(image=2)


def drawn(ax):
    """Return the lines that are not the zero line."""
    return [line.get_ydata() for line in ax.get_lines() if len(line.get_xdata()) == 10]


def test_one_image_and_its_standard_error():
    ds = both()
    ax = ds.ned.plot.waveforms("t:3", channel=["O1", "Oz"])
    trials = ds.response.values[3][:, :2].mean(1, dtype=np.float64)
    guess = ds.response_predicted.values[3, :2].mean(0, dtype=np.float64)
    measured, predicted = drawn(ax)
    np.testing.assert_allclose(measured, trials.mean(0), atol=1e-6)
    np.testing.assert_allclose(predicted, guess, atol=1e-6)
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    top = (trials.mean(0) + sem(trials, axis=0)).max()
    assert edges.max() == pytest.approx(top, abs=1e-6)
    r = np.corrcoef(trials.mean(0), guess)[0, 1]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["measured", f"predicted, r = {r:.2f}"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "response (uV)")


def test_the_mean_of_all_images_by_channel():
    ds = both()
    ax = ds.ned.plot.waveforms(by="channel")
    lines = drawn(ax)
    assert len(lines) == 8
    np.testing.assert_allclose(lines[2], ds.response.values[:, :, 1].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(lines[3], ds.response_predicted.values[:, 1].mean(0), atol=1e-6)
    legend = ax.get_legend()
    assert legend.get_texts()[2].get_text() == "Oz measured"
    ax.figure.canvas.draw()
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1
    same = ds.ned.plot.waveforms(2, ax=ax)
    assert same is ax


def test_what_was_not_measured_is_in_no_mean():
    """Absent repetitions and images are NaN: fewer of them make a wider band."""
    ds = both().compute()
    ds["response"][3, 4:] = np.nan
    ds["response"][1] = np.nan
    ax = ds.ned.plot.waveforms("t:3", channel="Oz")
    trials = ds.response.values[3, :4, 1].astype(np.float64)
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx((trials.mean(0) + sem(trials, axis=0)).max(), abs=1e-6)
    guess = drawn(ds.ned.plot.waveforms(channel="Oz"))[1]
    kept = ds.response_predicted.values[[0, 2, 3, 4], 1]
    np.testing.assert_allclose(guess, kept.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("ds", "arguments", "message"),
    [
        (both().drop_vars("response_predicted"), {}, "no 'response_predicted'"),
        (both(), {"image": "t:33"}, "t:3"),
        (both(), {"image": 7}, "5 images"),
        (both(), {"channel": "Fz"}, "Fz"),
        (both(), {"by": "region"}, "by='region'"),
        (both().isel(time=0), {}, "no time axis"),
    ],
)
def test_what_is_not_there_is_told(ds, arguments, message):
    with pytest.raises(SelectionError, match=message):
        ds.ned.plot.waveforms(**arguments)
