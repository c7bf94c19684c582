"""Selections against plain boolean logic on the labels."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.compute.planned import PlannedArray
from nedx.errors import SelectionError
from nedx.selection import resolve, roi_mean, select, select_tree
from tests.laziness import computes_at_most


def applied(coords, positions, dim):
    return np.arange(coords.sizes[dim])[positions[dim]]


@given(data=st.data())
@settings(max_examples=60)
def test_roi_is_the_union_over_the_subjects(data):
    subjects = data.draw(st.integers(1, 4))
    rois = [f"R{i}" for i in range(data.draw(st.integers(1, 4)))]
    size = data.draw(st.integers(1, 12))
    bits = data.draw(st.integers(0, 2**63 - 1))
    mask = np.random.default_rng(bits).random((subjects, len(rois), size)) < 0.3
    coords = xr.Dataset(
        coords={
            "subject": [f"sub-{i + 1:02d}" for i in range(subjects)],
            "roi": rois,
            "voxel": np.arange(size),
            "roi_mask": (("subject", "roi", "voxel"), mask),
        }
    )
    people = data.draw(st.lists(st.integers(1, subjects), min_size=1, unique=True))
    names = data.draw(st.lists(st.sampled_from(rois), min_size=1, unique=True))
    rows = [rois.index(name) for name in names]
    expected = [v for v in range(size) if any(mask[p - 1, r, v] for p in people for r in rows)]
    if not expected:
        with pytest.raises(SelectionError, match="no voxel"):
            resolve(coords, subject=people, roi=names)
        return
    found = resolve(coords, subject=people, roi=names)
    assert found["voxel"].tolist() == expected
    assert found["subject"].tolist() == [p - 1 for p in people]


@given(data=st.data())
@settings(max_examples=60)
def test_time_window_includes_both_ends(data):
    count = data.draw(st.integers(1, 30))
    times = np.arange(count) / 10 - 0.5
    low, high = sorted(data.draw(st.tuples(st.integers(-8, 30), st.integers(-8, 30))))
    coords = xr.Dataset(coords={"time": times})
    expected = [i for i in range(count) if low <= i - 5 <= high]
    if not expected:
        with pytest.raises(SelectionError, match="the samples run from"):
            resolve(coords, time=(low / 10, high / 10))
        return
    for window in (slice(low / 10, high / 10), (low / 10, high / 10), [low / 10, high / 10]):
        assert applied(coords, resolve(coords, time=window), "time").tolist() == expected


def test_open_windows_and_single_times(eeg):
    assert applied(eeg, resolve(eeg, time=(0.2, None)), "time").tolist() == [3, 4, 5]
    assert applied(eeg, resolve(eeg, time=slice(None, 0)), "time").tolist() == [0, 1]
    assert resolve(eeg, time=0.12)["time"].tolist() == [2]
    assert select(eeg, time=0.1).sizes["time"] == 1
    for wrong in (0.9, -0.4):
        with pytest.raises(SelectionError, match="the samples run from -0.1 to 0.4 s"):
            resolve(eeg, time=wrong)
    with pytest.raises(SelectionError, match="without a step"):
        resolve(eeg, time=slice(0, 1, 2))
    with pytest.raises(SelectionError, match=r"\(start, stop\)"):
        resolve(eeg, time=(0, 1, 2))


def test_channels_keep_the_order_asked_for(eeg):
    assert resolve(eeg, channel=["Cz", "Fp1"])["channel"].tolist() == [4, 0]
    assert resolve(eeg, channel="Oz")["channel"].tolist() == [3]
    assert resolve(eeg, channel=["Oz", "Oz"])["channel"].tolist() == [3]


def test_channel_groups(eeg):
    assert resolve(eeg, channel="back")["channel"].tolist() == [2, 3]
    assert resolve(eeg, channel=["Cz", "back"])["channel"].tolist() == [4, 2, 3]
    assert resolve(eeg, channel="visual")["channel"].tolist() == [1, 2, 3]
    # BERG's group O is every channel with the letter, F every one with an F.
    assert resolve(eeg, channel="O")["channel"].tolist() == [2, 3]
    assert resolve(eeg, channel="F")["channel"].tolist() == [0]


def test_subjects_in_every_spelling(eeg):
    for spelled in (2, "2", "02", "sub-02", "subj02", [2]):
        assert resolve(eeg, subject=spelled)["subject"].tolist() == [1]
    assert resolve(eeg, subject=[2, 1])["subject"].tolist() == [1, 0]
    assert select(eeg, subject=2).response.shape == (1, 3, 5, 6)


def test_a_single_subject_is_checked_by_its_label(eeg):
    one = eeg.isel(subject=1)
    assert resolve(one, subject=2) == {}
    with pytest.raises(SelectionError, match="sub-02"):
        resolve(one, subject=1)
    unnamed = one.drop_vars("subject").assign_attrs(subject_ids=["sub-07"])
    assert resolve(unnamed, subject="7") == {}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"subject": 3}, "unknown subject 'sub-03': did you mean 'sub-0"),
        ({"channel": "OZ"}, "unknown channel 'OZ': did you mean .*'Oz'"),
        ({"roi": "V1"}, "no 'roi_mask'"),
        ({"subject": []}, "empty"),
        ({"roi": "V1", "channel": "Oz"}, "not both"),
    ],
)
def test_what_is_not_there(eeg, asked, said):
    with pytest.raises(SelectionError, match=said):
        resolve(eeg, **asked)


def test_unknown_roi_names_the_close_ones(fmri):
    with pytest.raises(SelectionError, match="unknown ROI 'FFA1': did you mean 'FFA-1'"):
        select(fmri, roi="FFA1")
    with pytest.raises(SelectionError, match="along a time axis"):
        select(fmri, time=0.1)
    with pytest.raises(SelectionError, match="and these are vertices; type roi='V1'"):
        select(fmri, channel="Oz")


def test_select_narrows_everything(fmri):
    chosen = select(fmri, subject=[2, 1], roi="FFA-1")
    assert chosen.roi.values.tolist() == ["FFA-1"]
    assert chosen.vertex.values.tolist() == [6, 7]
    expected = fmri.response.values[[1, 0]][:, :, [6, 7]]
    np.testing.assert_array_equal(chosen.response, expected)
    assert chosen.roi_mask.shape == (2, 1, 2)


def test_roi_mean_is_of_each_subjects_own(fmri):
    mean = roi_mean(fmri, "V1")
    assert mean.response.dims == ("subject", "image")
    for number in range(3):
        own = fmri.roi_mask.values[number, 0]
        expected = fmri.response.values[number][:, own].mean(axis=1)
        np.testing.assert_allclose(mean.response[number], expected, rtol=1e-6)
    assert mean.roi.item() == "V1"
    assert mean.response.attrs["units"] == "percent"
    assert mean.response.attrs["cell_methods"] == "vertex: mean"
    assert "vertex" not in mean.variables
    assert "image_id" in mean.xindexes


def test_roi_mean_of_a_subject_without_it(fmri):
    mean = roi_mean(fmri, "FFA-1")
    assert np.isnan(mean.response[2]).all()
    assert np.isfinite(mean.response[:2]).all()
    with pytest.raises(SelectionError, match="belongs to 'FFA-1'"):
        roi_mean(select(fmri, subject=3), "FFA-1")


def test_roi_mean_does_not_see_the_neighbours(fmri):
    """What is not finite outside a subject's own vertices does not reach its mean."""
    wild = fmri.copy(deep=True)
    wild.response.values[0][:, ~fmri.roi_mask.values[0, 0]] = np.inf
    np.testing.assert_array_equal(
        roi_mean(wild, "V1").response[0], roi_mean(fmri, "V1").response[0]
    )


def test_roi_mean_of_half_precision_is_summed_in_single():
    values = np.full((1, 4096), 100, dtype=np.float16)
    ds = xr.Dataset(
        {"response": (("image", "voxel"), values)},
        coords={"roi": ["V1"], "roi_mask": (("roi", "voxel"), np.ones((1, 4096), bool))},
    )
    assert roi_mean(ds, "V1").response.dtype == np.float32
    assert roi_mean(ds, "V1").response.item() == 100


def test_roi_means_of_several(fmri):
    means = roi_mean(fmri, ["FFA-1", "V1"])
    assert means.roi.values.tolist() == ["FFA-1", "V1"]
    for name in ("V1", "FFA-1"):
        np.testing.assert_array_equal(means.response.sel(roi=name), roi_mean(fmri, name).response)


class _Columns:
    """A plan that remembers how many neuroids it is asked to compute."""

    def __init__(self, values):
        self.values = values

    def build(self):
        import dask.array as da

        return da.from_array(self.values, chunks=(1, 2, -1))

    def narrow(self, indexers):
        values = self.values
        for axis, indexer in enumerate(indexers):
            values = values[(slice(None),) * axis + (indexer,)]
        _Columns.narrowed_to = values.shape
        return _Columns(values)

    def __dask_tokenize__(self):
        return self.values.tobytes()


def test_selection_narrows_the_plan_before_it_averages(fmri):
    lazy = fmri.assign(response=(fmri.response.dims, PlannedArray(_Columns(fmri.response.values))))
    with computes_at_most(0):
        chosen = select(lazy, subject=[1, 2], roi="FFA-1")
        assert isinstance(chosen.response.data, PlannedArray)
        assert chosen.response.data.plan.values.shape == (2, 4, 2)
        mean = roi_mean(lazy, "V1")
        assert _Columns.narrowed_to == (3, 4, 5)
    xr.testing.assert_allclose(mean.compute(), roi_mean(fmri, "V1"))


def test_roi_mean_reads_no_other_labels(fmri, tmp_path):
    fmri.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    opened = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)
    mean = roi_mean(opened, "V1")
    assert not opened.variables["hemisphere"]._in_memory
    np.testing.assert_array_equal(mean.response, roi_mean(fmri, "V1").response)


def test_tree(tree):
    chosen = select_tree(tree, subject="2", roi="V1")
    assert list(chosen.children) == ["sub-02"]
    assert chosen["sub-02"].response.shape == (4, 3)
    assert chosen["sub-02/truth"].response.shape == (4, 3)
    np.testing.assert_array_equal(
        chosen["sub-02/truth"].response, tree["sub-02/truth"].response[:, :3]
    )
    with pytest.raises(SelectionError, match="unknown subject 'sub-03'"):
        select_tree(tree, subject=3)
