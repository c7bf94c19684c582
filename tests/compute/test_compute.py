"""References, cache, devices, mini-batches and planned arrays."""

from __future__ import annotations

import pickle
import threading
import time

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize

from nedx.compute.batches import batches, checked, prefetch
from nedx.compute.cache import ModelCache
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.compute.planned import PlannedArray
from nedx.compute.references import ModelRef, Positions
from nedx.errors import ModelError
from nedx.store.location import Location


class Loadable(ModelRef):
    """A reference whose loading is counted and slow."""

    count = 0

    def load(self, device, part=None):
        Loadable.count += 1
        time.sleep(0.02)
        return np.zeros(100, np.uint8) if part != "bad" else 1 / 0


def reference(sha="a", url="/a"):
    return Loadable("nedx.none:none", Location(url), "{}", sha)


class RangePlan:
    """Counts what is computed of arange(rows) x arange(columns)."""

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns

    def build(self):
        values = self.rows[:, None] * 100 + self.columns
        return da.from_array(values, chunks=2)

    def narrow(self, indexers):
        rows, columns = indexers
        return RangePlan(self.rows[rows], self.columns[columns])


def planned():
    return PlannedArray(RangePlan(np.arange(6), np.arange(5)))


def test_equal_weights_have_equal_references_wherever_they_lie():
    assert reference() == reference(url="/b")
    assert tokenize(reference()) == tokenize(pickle.loads(pickle.dumps(reference(url="/b"))))
    assert tokenize(reference()) != tokenize(reference("b"))
    assert len({reference(), reference(url="/b"), reference("b")}) == 2


def test_only_functions_of_nedx_are_called():
    with pytest.raises(ModelError, match="function of nedx"):
        ModelRef("os:system", None, "{}", "").load("cpu")


def test_many_threads_load_once():
    cache, ref = ModelCache(10**6), reference()
    before = Loadable.count
    threads = [threading.Thread(target=cache.get, args=(ref,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Loadable.count - before == 1
    assert cache.loads == 1


def test_the_least_recently_used_is_dropped():
    cache = ModelCache(250)
    a, b, c = (cache.get(reference(), part=part) for part in "abc")
    assert cache.nbytes == 200
    assert cache.get(reference(), part="c") is c
    assert cache.get(reference(), part="b") is b
    assert cache.get(reference(), part="a") is not a
    assert cache.loads == 4


def test_a_failed_load_is_tried_again():
    cache = ModelCache(250)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.get(reference(), part="bad")
    assert cache.get(reference(), part="good") is not None


def test_positions_are_values():
    positions = Positions.of(np.array([3, 1, 2], dtype=np.int16))
    assert positions == Positions.of([3, 1, 2])
    assert hash(positions) == hash(pickle.loads(pickle.dumps(positions)))
    assert positions.array.tolist() == [3, 1, 2]
    assert len(positions) == 3


def test_devices():
    import torch

    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="unknown device 'gpu'"):
        check_device("gpu")
    with pytest.raises(ModelError, match="device='auto'"):
        resolve_device("cuda:99")
    assert forward_slot("cpu") is forward_slot("cpu")
    assert forward_slot("cpu") is not forward_slot("cuda:0")


def test_batches_cover_all():
    assert batches(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert batches(0, 3) == []


def test_prefetch_keeps_the_order_and_the_bound():
    under_way, most, lock = 0, 0, threading.Lock()

    def make(part):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.002 if part.start % 2 else 0)
        return part.start

    found = []
    for start in prefetch(make, batches(30, 1), ahead=2):
        with lock:
            under_way -= 1
        found.append(start)
    assert found == list(range(30))
    assert most <= 4


def test_prefetch_raises_what_went_wrong():
    def make(part):
        if part.start == 3:
            raise ValueError("broken image")
        return part.start

    with pytest.raises(ValueError, match="broken image"):
        list(prefetch(make, batches(9, 1)))


def test_checked_names_what_is_wrong():
    good = np.zeros((3, 2), np.float32)
    assert checked(good, (3, 2), np.float32, "x") is good
    with pytest.raises(ModelError, match=r"float32 \(3, 2\), got float64 \(3, 2\)"):
        checked(good.astype(float), (3, 2), np.float32, "x")
    with pytest.raises(ModelError, match=r"\(4, 2\)"):
        checked(good, (4, 2), np.float32, "x")
    good[1, 0] = np.inf
    with pytest.raises(ModelError, match="cat.png"):
        checked(good, (3, 2), np.float32, "x", names=["a", "cat.png", "b"])
    # Finite values whose sum overflows are no fault.
    large = np.full((3, 2), 3e38, np.float32)
    assert checked(large, (3, 2), np.float32, "x") is large


def test_planned_and_plain_arrays_live_in_one_dataset():
    plain = da.arange(6, chunks=3)
    ds = xr.Dataset({"planned": (("a", "b"), planned()), "plain": ("a", plain)})
    loaded = ds.compute()
    np.testing.assert_array_equal(loaded["planned"][:, 0], np.arange(6) * 100)
    np.testing.assert_array_equal((ds["planned"] + ds["plain"]).values[:, 0], np.arange(6) * 101)
    joined = xr.concat([ds["plain"], ds["planned"][:, 1]], dim="c")
    assert joined.compute().shape == (2, 6)


def test_planned_arrays_index_like_numpy():
    values = planned().compute()
    for key in ([1, 4], slice(5, None, -2), 3, -1, np.array([True, False] * 3)):
        narrowed = planned()[key]
        np.testing.assert_array_equal(narrowed.compute(), values[key])
    assert isinstance(planned()[[0, 2], 1:3], PlannedArray)
    np.testing.assert_array_equal(planned()[..., None].compute(), values[..., None])


def test_planned_arrays_save_work_after_an_axis_is_dropped():
    values = planned().compute()
    column = planned()[:, 2]
    assert isinstance(column, PlannedArray)
    np.testing.assert_array_equal(column[[4, 1]].compute(), values[[4, 1], 2])
    assert column[[4, 1]].plan.plan.rows.tolist() == [4, 1]
    assert planned()[3, 2].compute() == values[3, 2]
    np.testing.assert_array_equal(planned()[3][1:].compute(), values[3, 1:])
