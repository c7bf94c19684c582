"""Figures of accuracy: what is drawn, against numbers worked out here."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import nedx  # noqa: F401
from nedx.errors import SelectionError

ROIS = ("V1", "hV4", "FFA-1")


@pytest.fixture(autouse=True)
def _pyplot_keeps_nothing():
    yield
    assert plt.get_fignums() == []


def scored(n_subjects=3, n=60) -> xr.Dataset:
    rng = np.random.default_rng(0)
    mask = rng.random((n_subjects, 3, n)) < 0.4
    mask[1, 2] = False
    return xr.Dataset(
        {
            "accuracy": (("subject", "vertex"), rng.uniform(-0.2, 0.9, (n_subjects, n))),
            "noise_ceiling": (("subject", "vertex"), rng.uniform(0, 0.9, (n_subjects, n))),
            "roi_mask": (("subject", "roi", "vertex"), mask),
        },
        {"subject": [f"sub-{i + 1:02d}" for i in range(n_subjects)], "roi": list(ROIS)},
    )


def explained(ds: xr.Dataset, subject: int, roi: int) -> np.ndarray:
    """Explained variance as published: r below 0 is 0, at most 1, ceilings from 0.1 on."""
    kept = ds.roi_mask.values[subject, roi] & (ds.noise_ceiling.values[subject] >= 0.1)
    r = np.maximum(ds.accuracy.values[subject][kept], 0)
    return np.minimum(r**2 / ds.noise_ceiling.values[subject][kept], 1)


def as_tree(ds: xr.Dataset) -> xr.DataTree:
    """Return the subjects as a tree, each with other voxels."""
    parts = {}
    for i, label in enumerate(ds.subject.values):
        parts[f"/{label}"] = ds.isel(subject=i, drop=True).isel(vertex=slice(i, None))
    return xr.DataTree.from_dict(parts)


def test_the_scatter_shows_every_neuroid_of_the_rois():
    ds = scored()
    ax = ds.ned.plot.accuracy_scatter(["V1", "FFA-1"])
    for drawn, roi in zip(ax.collections, (0, 2), strict=True):
        member = ds.roi_mask.values[:, roi]
        expected = np.stack(
            [ds.noise_ceiling.values[member], np.maximum(ds.accuracy.values[member], 0) ** 2], 1
        )
        np.testing.assert_allclose(drawn.get_offsets(), expected)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["V1", "FFA-1"]
    assert "fraction of variance" in ax.get_xlabel()
    assert len(ds.ned.plot.accuracy_scatter().collections[0].get_offsets()) == 180


def test_the_histogram_counts_what_can_be_predicted():
    ds = scored()
    ax = ds.ned.plot.accuracy_histogram("hV4", bins=10)
    values = np.concatenate([explained(ds, subject, 1) for subject in range(3)])
    expected, _ = np.histogram(values, 10, (0, 1))
    outline = ax.patches[0].get_xy()[:, 1]
    np.testing.assert_array_equal(outline[1:20:2], expected)
    assert np.isclose(ax.lines[0].get_xdata()[0], np.median(values))


@pytest.mark.parametrize("ragged", [False, True])
def test_bars_are_the_means_of_each_subject(ragged):
    ds = scored()
    if ragged:
        # A tree leaves the first voxels of the later subjects out.
        for subject in range(3):
            ds.roi_mask[subject, :, :subject] = False
    ax = (as_tree(ds) if ragged else ds).ned.plot.accuracy_bars()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(ROIS)
    heights = np.array([[bar.get_height() for bar in bars] for bars in ax.containers])
    for subject in range(3):
        for roi in range(3):
            values = explained(ds, subject, roi)
            expected = values.mean() if values.size else np.nan
            assert np.isclose(heights[subject, roi], expected, equal_nan=True)
    assert np.isnan(heights[1, 2])
    over = [segment[0, 1] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(over, np.nanmean(heights, axis=0))


def test_axes_go_in_and_come_out():
    from matplotlib.figure import Figure

    own = Figure().add_subplot()
    assert scored().ned.plot.accuracy_bars(ax=own) is own
    assert scored().ned.plot.accuracy_scatter("V1", ax=own) is own


def test_what_is_missing_is_named():
    ds = scored()
    with pytest.raises(SelectionError, match=r"no variable 'noise_ceiling'; add.*score"):
        ds.drop_vars("noise_ceiling").ned.plot.accuracy_scatter()
    with pytest.raises(SelectionError, match="no variable 'accuracy'"):
        ds.drop_vars("accuracy").ned.plot.accuracy_histogram()
    with pytest.raises(SelectionError, match=r"roi_mask.*accuracy_histogram\(\)"):
        ds.drop_vars("roi_mask").ned.plot.accuracy_bars()
    with pytest.raises(SelectionError, match="did you mean 'FFA-1'"):
        ds.ned.plot.accuracy_scatter("FFA-2")
    with pytest.raises(SelectionError, match="no neuroid has an accuracy"):
        ds.assign(accuracy=ds.accuracy * np.nan).ned.plot.accuracy_histogram()
    with pytest.raises(SelectionError, match=r"highest is 0\.0.*min_ceiling=0"):
        (ds.assign(noise_ceiling=ds.noise_ceiling / 20)).ned.plot.accuracy_histogram()
