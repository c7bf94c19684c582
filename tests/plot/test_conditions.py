"""Conditions beside each other: bars are means, points are what they are means of."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from nedx.errors import SelectionError
from nedx.plot.conditions import plot_conditions

pytest.importorskip("matplotlib").use("Agg")


@pytest.fixture
def found() -> xr.Dataset:
    names = np.array(["clean", "perturbed", "control-00", "control-01", "control-02"], object)
    top1 = np.random.default_rng(0).random((5, 4, 2))
    return xr.Dataset({"top1": (("condition", "seed", "subject"), top1)}, {"condition": names})


def heights(ax):
    return [bar.get_height() for bar in ax.patches]


def points(ax):
    return [np.sort(drawn.get_offsets()[:, 1]) for drawn in ax.collections]


def test_bars_are_means_and_controls_are_one(found):
    ax = plot_conditions(found)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["clean", "perturbed", "other channels"]
    values = found.top1.values
    np.testing.assert_allclose(heights(ax), [values[0].mean(), values[1].mean(), values[2:].mean()])
    np.testing.assert_allclose(points(ax)[1], np.sort(values[1].mean(0)))
    np.testing.assert_allclose(points(ax)[2], np.sort(values[2:].mean((1, 2))))


def test_one_seed_and_one_subject(found):
    one = found.top1.values[:, 1, 0]
    ax = plot_conditions(found.isel(seed=1, subject=0))
    np.testing.assert_allclose(heights(ax), [one[0], one[1], one[2:].mean()])


def test_what_is_no_measure_of_conditions(found):
    with pytest.raises(SelectionError, match="did you mean 'top1'"):
        plot_conditions(found, "top2")
    with pytest.raises(SelectionError, match="'top1' is no measure"):
        plot_conditions(found.isel(condition=0))
