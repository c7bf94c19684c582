"""Means of blocks against plain numpy, under any chunks."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import detrend

from nedx.errors import SelectionError
from nedx.preprocessing.blocks import block_averages
from nedx.schema import parse
from tests.laziness import computes_at_most

RUN = ["rest", "a", "a", "rest", "b", "b", "b", "a", "rest"]


def recording(values, chunks=-1, labels=RUN):
    runs = len(values) // len(labels)
    coords = {
        "category": ("trial", np.array(labels * runs, dtype=object)),
        "session": ("trial", np.ones(len(values), np.int16)),
        "run": ("trial", np.repeat(np.arange(runs), len(labels)).astype(np.int16)),
        "voxel": np.arange(values.shape[1], dtype=np.int32),
    }
    response = (("trial", "voxel"), da.from_array(values, chunks=chunks), {"units": "percent"})
    attrs = {"modality": "fmri", "source": "measured", "stimulus_identity": "none"}
    return parse(xr.Dataset({"response": response}, coords, attrs))


@settings(max_examples=20)
@given(rows=st.integers(1, 18), columns=st.integers(1, 4), linear=st.booleans())
def test_any_chunks_give_the_means_of_numpy(rows, columns, linear):
    values = np.random.default_rng(0).standard_normal((18, 4)).astype(np.float32)
    with computes_at_most(0):
        found = block_averages(recording(values, (rows, columns)), detrend=1 if linear else None)
    expected = []
    for run in (values[:9].astype(np.float64), values[9:].astype(np.float64)):
        courses = detrend(run, axis=0) if linear else run
        courses = (courses - courses.mean(0)) / courses.std(0)
        expected += [courses[1:3].mean(0), courses[4:7].mean(0), courses[7]]
    np.testing.assert_allclose(found.response, expected, atol=1e-5)
    assert found.category.values.tolist() == ["a", "b", "a"] * 2
    assert found.n_volumes.values.tolist() == [2, 3, 1] * 2
    assert found.run.values.tolist() == [0, 0, 0, 1, 1, 1]


def test_what_was_done_is_said():
    values = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    scored = block_averages(recording(values))
    assert scored.response.attrs["units"] == "1"
    assert scored.response.attrs["normalization_scope"] == "run"
    assert scored.attrs["preprocessing"][-1]["step"] == "block_averages"
    plain = recording(values).ned.block_averages(detrend=None, zscore=False)
    assert plain.response.attrs["units"] == "percent"
    np.testing.assert_allclose(plain.response[1], values[4:7].mean(0), rtol=1e-5)


def test_a_constant_voxel_has_zero():
    values = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    values[:, 1] = 0.1
    found = block_averages(recording(values)).response.values
    assert (found[:, 1] == 0).all()


def test_bad_input():
    values = np.ones((9, 1), np.float32)
    ds = recording(values)
    with pytest.raises(SelectionError, match="coordinate 'block"):
        block_averages(ds, label="block")
    with pytest.raises(SelectionError, match="needs a coordinate 'run"):
        block_averages(ds.drop_vars("run"))
    with pytest.raises(SelectionError, match="no blocks"):
        block_averages(recording(values, labels=["rest"] * 9))
    with pytest.raises(SelectionError, match="fewer than 12 volumes"):
        block_averages(ds, detrend=10)
