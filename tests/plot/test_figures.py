"""Time courses, scalps, cortices, RDMs and images, against numbers and other libraries."""

from __future__ import annotations

import matplotlib.pyplot as plt
import mne
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from nilearn import datasets, surface
from scipy import stats

import nedx
from nedx.errors import SchemaError, SelectionError
from nedx.plot.rdm import plot_rdm
from nedx.plot.surface import N_VERTICES, on_fsaverage5

CHANNELS = ("Fp1", "Fp2", "C3", "Cz", "C4", "P7", "P8", "O1", "Oz", "O2")


@pytest.fixture(autouse=True)
def _pyplot_keeps_nothing():
    yield
    assert plt.get_fignums() == []


def eeg(units="uV") -> xr.Dataset:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 8, 2, len(CHANNELS), 20)).astype(np.float32)
    dims = ("subject", "image", "repetition", "channel", "time")
    named = {"units": units, "long_name": "response"}
    return xr.Dataset(
        {"response": (dims, values, named)},
        {
            "subject": ["sub-01", "sub-02", "sub-03"],
            "image_id": ("image", [f"t:{i}" for i in range(8)]),
            "category": ("image", list("aabbccdd")),
            "channel": list(CHANNELS),
            "region": ("channel", ["front"] * 2 + ["middle"] * 3 + ["back"] * 5),
            "time": ("time", np.arange(-5, 15) / 100, {"units": "s", "long_name": "time"}),
        },
    )


def test_the_interval_is_that_of_scipy():
    ds = eeg().isel(time=slice(4), channel=slice(3))
    options = {"n_resamples": 20_000, "over": "image", "level": 0.9}
    ax = ds.ned.plot.timecourse(**options)
    low, high = _edges(ax.collections[0], ds.time.values)
    means = ds.response.values.mean((0, 2, 3), dtype=np.float64)
    expected = stats.bootstrap(
        (means,),
        np.mean,
        axis=0,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = expected.high - expected.low
    np.testing.assert_allclose((low - expected.low) / width, 0, atol=0.03)
    np.testing.assert_allclose((high - expected.high) / width, 0, atol=0.03)


def _edges(band, times) -> np.ndarray:
    """Return the lower and the upper edge of a filled band."""
    points = band.get_paths()[0].vertices
    at = [points[np.isclose(points[:, 0], time), 1] for time in times]
    return np.array([[y.min() for y in at], [y.max() for y in at]])


def test_time_courses_are_means_within_their_interval():
    ds = eeg()
    ax = ds.ned.plot.timecourse(by="region")
    lines = [line for line in ax.lines if len(line.get_xdata()) == 20]
    assert [line.get_label() for line in lines] == ["front", "middle", "back"]
    for line, part in zip(lines, (slice(0, 2), slice(2, 5), slice(5, 10)), strict=True):
        np.testing.assert_allclose(line.get_xdata(), ds.time)
        expected = ds.response.values[:, :, :, part].mean((0, 1, 2, 3))
        np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-6)
    # Of three subjects resampled, the most extreme means are those of single subjects.
    front = ds.response.values[:, :, :, :2].mean((1, 2, 3))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert front.min() - 1e-6 <= band.min() < front.mean(0).min()
    assert ax.get_xlabel() == "time (s)"
    assert ax.get_ylabel() == "response (uV)"


def test_time_courses_resample_what_is_asked_for():
    ds = eeg().chunk(image=2)
    by_subject = ds.ned.plot.timecourse(by="subject")
    by_category = ds.ned.plot.timecourse(by="category", over="repetition")
    assert len(by_subject.collections) == 3
    assert len(by_category.collections) == 4
    assert not ds.ned.plot.timecourse(over="none").collections
    category = next(line for line in by_category.lines if line.get_label() == "c")
    expected = ds.response.values[:, 4:6].mean((0, 1, 2, 3))
    np.testing.assert_allclose(category.get_ydata(), expected, atol=1e-6)


def test_the_scalp_is_that_of_mne():
    ds = eeg()
    ax = ds.ned.plot.topomap(time=0.1)
    values = ds.response.sel(time=0.1).values.mean((0, 1, 2))
    info = mne.create_info(list(CHANNELS), 1.0, "eeg")
    info.set_montage("colin27_1005")
    own = Figure().add_subplot()
    most = np.abs(values).max()
    mne.viz.plot_topomap(values, info, axes=own, show=False, vlim=(-most, most))
    np.testing.assert_allclose(
        ax.images[0].get_array().filled(0), own.images[0].get_array().filled(0), atol=1e-5
    )
    assert ax.images[0].get_clim() == pytest.approx((-most, most))
    assert ax.get_title() == "0.1 s"
    assert ax.figure.axes[1].get_ylabel() == "response (uV)"


def test_a_scalp_of_what_has_no_unit_and_of_windows():
    ds = eeg(units="1")
    ax = ds.ned.plot.topomap(time=(0.05, 0.1), colorbar=False)
    assert len(ax.figure.axes) == 1
    ds["noise_ceiling"] = ("channel", np.linspace(0, 1, len(CHANNELS)), {"units": "1"})
    drawn = ds.ned.plot.topomap("noise_ceiling").images[0]
    assert drawn.get_cmap().name == "viridis"
    assert drawn.get_clim() == (0, 1)


def test_scalps_that_cannot_be_drawn():
    with pytest.raises(SelectionError, match=r"-0\.05 to 0\.14 s.*time=0\.1"):
        eeg().ned.plot.topomap()
    with pytest.raises(SelectionError, match="4 or more"):
        eeg().isel(channel=slice(3)).ned.plot.topomap(time=0.1)
    with pytest.raises(SchemaError, match="no channels of"):
        eeg().assign_coords(channel=[f"E{i}" for i in range(10)]).ned.plot.topomap(time=0.1)
    with pytest.raises(SelectionError, match="no time axis"):
        eeg().isel(time=0, drop=True).ned.plot.timecourse()
    with pytest.raises(SelectionError, match="there are: "):
        eeg().ned.plot.timecourse(by="colour")
    with pytest.raises(SelectionError, match="no dim"):
        eeg().ned.plot.timecourse(over="session")


def cortex(density="10k", count=N_VERTICES) -> xr.Dataset:
    rng = np.random.default_rng(3)
    values = rng.random((2, 2 * count)).astype(np.float32)
    grid = {"space": "fsaverage", "density": density}
    return xr.Dataset(
        {"noise_ceiling": (("subject", "vertex"), values, {"units": "1"})},
        {
            "subject": ["sub-01", "sub-02"],
            "vertex": ("vertex", np.arange(2 * count), grid),
            "hemisphere": ("vertex", np.repeat(["L", "R"], count)),
            "vertex_index": ("vertex", np.tile(np.arange(count), 2)),
        },
    )


def test_finer_surfaces_begin_with_the_vertices_of_fsaverage5():
    ds = cortex("41k", 40_962)
    mean = ds.noise_ceiling.mean("subject", keep_attrs=True)
    right = on_fsaverage5(mean, "R")
    np.testing.assert_array_equal(right, mean.values[40_962 : 40_962 + N_VERTICES])
    some = on_fsaverage5(mean.isel(vertex=[3, 9, 20_000]), "L")
    assert np.flatnonzero(np.isfinite(some)).tolist() == [3, 9]


def test_vertices_in_another_order_are_found_on_the_sphere():
    ds = cortex().isel(subject=0)
    mesh = datasets.fetch_surf_fsaverage("fsaverage5")
    sphere = surface.load_surf_mesh(mesh["sphere_left"]).coordinates
    order = np.random.default_rng(4).permutation(N_VERTICES)
    both = np.concatenate([sphere[order], sphere])
    array = ds.noise_ceiling.assign_coords({a: ("vertex", both[:, i]) for i, a in enumerate("xyz")})
    np.testing.assert_array_equal(on_fsaverage5(array, "L")[order], array.values[:N_VERTICES])
    # A patch of it reaches no further than its own vertices and their neighbours.
    patch = array.isel(vertex=np.flatnonzero(both[:N_VERTICES, 2] > 90))
    filled = np.isfinite(on_fsaverage5(patch, "L"))
    assert filled[sphere[:, 2] > 90].all()
    assert not filled[sphere[:, 2] < 85].any()


def test_a_cortex_is_drawn_with_its_scale():
    ds = cortex().isel(subject=[0])
    ax = ds.ned.plot.surface("noise_ceiling", hemisphere="R", view="medial")
    assert ax.name == "3d"
    assert len(ax.collections[0].get_facecolor()) == 20_480
    assert ax.figure.axes[1].get_ylabel() == "noise_ceiling"
    own = Figure().add_subplot(projection="3d")
    assert ds.ned.plot.surface("noise_ceiling", ax=own, colorbar=False) is own


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda ds: ds.isel(vertex=slice(10)), {"hemisphere": "R"}, "no vertex of the hemisphere"),
        (lambda ds: ds.rename(vertex="voxel"), {}, "'vertex' as the neuroid"),
        (lambda ds: ds, {"ax": Figure().add_subplot()}, "projection='3d'"),
    ],
)
def test_cortices_that_cannot_be_drawn(change, options, says):
    with pytest.raises(SchemaError, match=says):
        change(cortex()).ned.plot.surface("noise_ceiling", **options)


def test_an_rdm_is_put_in_the_order_of_its_categories():
    values = np.random.default_rng(5).random((4, 4)) + 1
    values += values.T
    labels = {"category": ("image", list("baab")), "image_id": ("image", list("wxyz"))}
    rdm = xr.DataArray(values, labels, ("image", "image_2"), "rdm", {"long_name": "1 - r"})
    ax = plot_rdm(rdm)
    order = [1, 2, 0, 3]
    expected = values[np.ix_(order, order)]
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), expected)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    off = values[~np.eye(4, dtype=bool)]
    assert ax.images[0].get_clim() == (off.min(), off.max())
    plain = plot_rdm(rdm.expand_dims(subject=1), by=None)
    assert [tick.get_text() for tick in plain.get_yticklabels()] == list("wxyz")
    with pytest.raises(SchemaError, match="expected a square"):
        plot_rdm(rdm.isel(image=slice(3)))


def test_the_rdm_of_responses_is_drawn_at_a_time():
    ds = eeg().isel(subject=0, repetition=0)
    ax = ds.ned.plot.rdm(time=0.1, by=None)
    expected = 1 - np.corrcoef(ds.response.sel(time=0.1).values)
    np.fill_diagonal(expected, np.nan)
    found = ax.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_stand_above_their_own_responses(tmp_path):
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    stimuli = nedx.open_images(pixels)
    ids = stimuli.image_id.values[[3, 0, 4]]
    ds = xr.Dataset(
        {"response": (("subject", "image", "unit"), rng.standard_normal((2, 3, 4)))},
        {"image_id": ("image", ids)},
    )
    ax = ds.ned.plot.images(stimuli)
    np.testing.assert_allclose(ax.images[0].get_array(), ds.response.values.mean(0).T, rtol=1e-5)
    for thumbnail, row in zip(ax.child_axes, (3, 0, 4), strict=True):
        np.testing.assert_array_equal(thumbnail.images[0].get_array(), pixels[row])
    with pytest.raises(SelectionError, match="no pixels of 2 images"):
        ds.ned.plot.images(stimuli.isel(image=[0, 1]))
    with pytest.raises(SchemaError, match="open_images"):
        ds.ned.plot.images()
    with pytest.raises(SelectionError, match="at most 64"):
        ds.isel(unit=np.zeros(99, int)).ned.plot.images(stimuli)
