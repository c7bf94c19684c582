"""Blocks of stored arrays: whole chunks, few tasks, the same values under any selection."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.store.lazy import StoredPlan, plan_variable
from nedx.store.opening import open_store
from tests.stored import responses, write

MB = 2**20


def pretended(shape, chunks, shards=None, dtype="float32"):
    """A variable of any size that nothing has to hold."""
    data = np.broadcast_to(np.zeros((), dtype), shape)
    dims = [f"d{axis}" for axis in range(len(shape))]
    return xr.Variable(dims, data, encoding={"chunks": chunks, "shards": shards})


def blocks(variable):
    return StoredPlan(variable, tuple(slice(0, n) for n in variable.shape)).blocks()


def edges(lengths):
    return np.cumsum([0, *lengths])


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((8, 73_000, 327_684), (1, 128, 4096), None),
        ((8, 73_000, 327_684), (1, 128, 4096), (1, 2048, 16_384)),
        ((73_000, 63, 141), (64, 63, 141), (4096, 63, 141)),
        ((100_000, 20_484), (16, 20_484), (1600, 20_484)),
        ((1000, 50), (4, 50), (16, 50)),
    ],
)
def test_a_scan_has_tasks_of_16_to_64_mb_of_whole_chunks(shape, chunks, shards):
    found = blocks(pretended(shape, chunks, shards))
    sizes = [lengths[0] for lengths in found]
    nbytes = 4 * np.prod(sizes)
    assert nbytes <= 64 * MB
    assert nbytes >= min(16 * MB, 4 * np.prod(shape))
    for axis, lengths in enumerate(found):
        assert sum(lengths) == shape[axis]
        assert not (edges(lengths)[:-1] % chunks[axis]).any()
        if shards is not None:
            inner, outer = sizes[axis], shards[axis]
            assert outer % inner == 0 or inner % outer == 0 or inner == shape[axis]


def test_small_inner_chunks_do_not_become_tiny_tasks(tmp_path):
    """xarray takes the inner chunks of a sharded array (fact 4 of the spec)."""
    ds = xr.Dataset({"response": (("image", "voxel"), np.zeros((160, 50), np.float32))})
    ds.to_zarr(
        tmp_path / "s.zarr",
        zarr_format=3,
        encoding={"response": {"chunks": (4, 50), "shards": (16, 50)}},
    )
    assert xr.open_zarr(tmp_path / "s.zarr")["response"].data.npartitions == 40
    lazy = xr.open_dataset(tmp_path / "s.zarr", engine="zarr", chunks=None)["response"].variable
    planned = plan_variable(lazy, {}, "")
    assert planned.data.npartitions == 1


indexers = st.one_of(
    st.slices(23),
    st.lists(st.integers(-23, 22), max_size=30).map(lambda p: np.array(p, dtype=np.int64)),
    st.lists(st.booleans(), min_size=23, max_size=23).map(np.array),
    st.integers(-23, 22),
)


@pytest.fixture(scope="module")
def stored():
    """A stored array of 23 x 23, sharded, without dask."""
    values = np.arange(23 * 23, dtype=np.float32).reshape(23, 23)
    array = zarr.create_array({}, shape=values.shape, dtype="f4", chunks=(3, 2), shards=(6, 8))
    array[:] = values
    from xarray.backends.zarr import ZarrArrayWrapper
    from xarray.core.indexing import LazilyIndexedArray

    data = LazilyIndexedArray(ZarrArrayWrapper(array))
    encoding = {"chunks": array.chunks, "shards": array.shards}
    return values, xr.Variable(("a", "b"), data, encoding=encoding)


@settings(max_examples=60)
@given(first=indexers, second=st.lists(st.integers(0, 22), min_size=1, max_size=9), data=st.data())
def test_any_two_selections_equal_numpy(stored, first, second, data):
    values, variable = stored
    asked = data.draw(st.sampled_from([{}, {"a": 5}, {"a": 4, "b": -1}]))
    planned = plan_variable(variable, asked, "t")
    np.testing.assert_array_equal(planned[first, second].values, values[first][..., second])
    np.testing.assert_array_equal(
        planned[:, second][second, ::-1].values, values[:, second][second][:, ::-1]
    )


@settings(max_examples=60)
@given(
    positions=st.lists(st.integers(0, 999), min_size=1, max_size=200, unique=True),
    chunk=st.integers(1, 64),
)
def test_no_two_tasks_share_a_chunk(positions, chunk):
    variable = pretended((1000, 300_000), (chunk, 3000))
    plan = StoredPlan(variable, (np.array(sorted(positions)), slice(7, 290_001)))
    for indexer, lengths, size in zip(plan.indexers, plan.blocks(), (chunk, 3000), strict=True):
        touched = np.arange(300_000)[indexer] // size
        parts = np.split(touched, edges(lengths)[1:-1])
        seen = [set(part) for part in parts]
        assert sum(map(len, seen)) == len(set.union(*seen))


def test_names_of_tasks_follow_what_is_read(stored):
    _, variable = stored

    def make(token):
        return plan_variable(variable, {}, token)

    assert make("a").data.name == make("a").data.name
    assert make("a").data.name != make("b").data.name
    assert make("a")[:4].data.name != make("a")[:5].data.name


def test_selections_that_differ_in_the_middle_have_names_of_their_own(tmp_path):
    # dask prints what names its tasks, and numpy prints long arrays without their middle.
    path = write(responses(n_images=4000, n_vertices=20), tmp_path / "long.zarr")
    opened = open_store(path)["response"]
    rows = np.arange(3000)
    other = np.delete(np.arange(3001), 1500)
    here, there = opened.isel(image=rows), opened.isel(image=other)
    assert here.data.name != there.data.name
    assert float(abs(here.data - there.data).max().compute()) > 0


def test_lazy_strings_come_as_objects(tmp_path):
    path = write(responses(n_images=60), tmp_path / "strings.zarr")
    caption = open_store(path)["caption"]
    assert caption.dtype == object
    assert list(caption[:2].values.astype(str)) == ["picture 0", "picture 1"]
