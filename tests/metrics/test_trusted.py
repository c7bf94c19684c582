"""Selecting what is predicted well enough."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.errors import SelectionError
from tests.laziness import computes_at_most

ACCURACY = np.array([[0.1, 0.5, np.nan, 0.2], [0.4, 0.0, np.nan, 0.1]], np.float32)


@pytest.fixture
def ds():
    response = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    return xr.Dataset(
        {"response": (("subject", "image", "vertex"), response)},
        coords={
            "subject": np.array(["sub-01", "sub-02"], dtype=object),
            "vertex": np.arange(4, dtype=np.int32),
            "encoding_accuracy": (("subject", "vertex"), ACCURACY),
            "noise_ceiling": (("subject", "vertex"), np.full((2, 4), 0.3, np.float32)),
        },
    ).chunk({"image": 1})


def test_what_any_subject_reaches_is_kept_and_said_whose(ds):
    # The accuracy alone, never the response.
    with computes_at_most(1):
        kept = ds.ned.trusted(min_accuracy=0.3)
    assert kept.vertex.values.tolist() == [0, 1]
    assert kept.trusted.values.tolist() == [[False, True], [True, False]]
    np.testing.assert_array_equal(kept.response, ds.response[..., :2])


def test_both_thresholds_must_be_reached(ds):
    ds.noise_ceiling[0, 1] = 0.05
    assert ds.ned.trusted(min_accuracy=0.3, min_noise_ceiling=0.1).vertex.values.tolist() == [0]


def test_times_are_told_apart():
    images = nedx.open("sim-images").isel(image=slice(2))
    eeg = images.ned.encode("sim-eeg-gabor", subject=1)
    least = 0.2
    kept = eeg.ned.trusted(min_noise_ceiling=least)
    best = eeg.noise_ceiling.max(["time"]).values.reshape(-1)
    expected = eeg.channel.values[best >= least]
    assert kept.channel.values.tolist() == expected.tolist()
    assert len(expected) > 0
    assert "time" in kept.trusted.dims


def test_every_subject_of_a_tree_is_selected_alone():
    images = nedx.open("sim-images").isel(image=slice(2))
    tree = images.ned.encode("sim-fmri-gabor", subject=[1, 2])
    kept = tree.ned.trusted(min_noise_ceiling=0.2)
    for name in ("sub-01", "sub-02"):
        assert (kept[name].noise_ceiling >= 0.2).all()
        assert kept[name].sizes["voxel"] == int((tree[name].noise_ceiling >= 0.2).sum())


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ({}, "min_accuracy=0.3"),
        ({"min_accuracy": 30}, "30 % is 0.3"),
        ({"min_accuracy": 0.9}, r"the best is 0\.5"),
        ({"min_noise_ceiling": -1}, "from 0 to 1"),
    ],
)
def test_what_cannot_be_trusted_is_said(ds, thresholds, said):
    with pytest.raises(SelectionError, match=said):
        ds.ned.trusted(**thresholds)


def test_data_that_do_not_say_how_good_they_are(ds):
    with pytest.raises(SelectionError, match="does not say 'encoding_accuracy'"):
        ds.drop_vars("encoding_accuracy").ned.trusted(min_accuracy=0.3)
