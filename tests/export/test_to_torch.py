"""Streams of samples: each once and no other, whatever reads them."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import nedx
from nedx.errors import SelectionError
from nedx.export.torch import grouped
from tests.laziness import computes_at_most
from tests.memory import needs_proc
from tests.stored import CHUNKS, responses, write

N_IMAGES = 130


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(responses(N_IMAGES, 300), tmp_path_factory.mktemp("torch") / "responses.zarr")


@pytest.fixture(scope="module")
def truth():
    ds = responses(N_IMAGES, 300)
    ids = ds.image_id.values.tolist()
    return dict(zip(ids, ds.response.transpose("image", ...).values, strict=True))


def opened(store, **chunks) -> xr.Dataset:
    return nedx.open_store(str(store), chunks=chunks or {"image": CHUNKS["image"]})


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_comes_once_with_its_label(store, truth, shuffle):
    with computes_at_most(0):
        stream = opened(store).ned.to_torch(shuffle=shuffle)
    found = list(stream)
    assert stream.n_samples == len(found) == N_IMAGES
    assert {sample["image_id"] for sample in found} == set(truth)
    for sample in found:
        assert sample["response"].dtype == torch.float32
        np.testing.assert_array_equal(sample["response"], truth[sample["image_id"]])
    in_order = [sample["image_id"] for sample in found] == list(truth)
    assert in_order is not shuffle


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_lose_nothing_and_repeat_nothing(store, truth, context):
    # Read here first: the threads that this starts are not there in a forked worker.
    ds = opened(store)
    ds.response[:, :2].compute()
    loader = DataLoader(
        ds.ned.to_torch(mixed=2),
        batch_size=16,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context(context),
        timeout=120,
    )
    ids = []
    for batch in loader:
        ids += batch["image_id"]
        for image_id, values in zip(batch["image_id"], batch["response"], strict=True):
            np.testing.assert_array_equal(values, truth[image_id])
    assert len(ids) == N_IMAGES
    assert set(ids) == set(truth)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 12))
def test_groups_share_the_chunks_out(count, mixed, workers):
    groups = grouped(np.arange(count), mixed, workers)
    assert np.concatenate([*groups, []]).astype(int).tolist() == list(range(count))
    assert all(1 <= len(group) <= mixed for group in groups)
    assert len(groups) >= min(count, workers)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.booleans())
def test_chunks_change_the_order_and_nothing_else(sizes, mixed, shuffle):
    count = sum(sizes)
    values = np.arange(count * 3.0).reshape(count, 3)
    ds = xr.Dataset({"response": (("trial", "unit"), values)}).chunk(trial=tuple(sizes))
    found = np.array([s["response"].numpy() for s in ds.ned.to_torch(mixed=mixed, shuffle=shuffle)])
    np.testing.assert_array_equal(found[np.argsort(found[:, 0])], values)
    if not shuffle:
        np.testing.assert_array_equal(found, values)


def test_epochs_differ_and_come_again(store):
    def order(stream):
        return [sample["image_id"] for sample in stream]

    stream = opened(store).ned.to_torch(seed=3)
    first = order(stream)
    assert order(stream) == first
    stream.set_epoch(1)
    second = order(stream)
    assert second != first
    assert sorted(second) == sorted(first)
    again = opened(store).ned.to_torch(seed=3)
    again.set_epoch(1)
    assert order(again) == second
    assert order(opened(store).ned.to_torch(seed=4)) != first
    # Chunks come in another order, and the samples of several of them are mixed.
    number = np.array([int(image_id[2:]) // CHUNKS["image"] for image_id in first])
    assert len(set(number[:20])) > 1


def test_workers_that_live_on_see_the_epoch(store):
    stream = opened(store).ned.to_torch()
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([sample["image_id"] for sample in loader])
    assert orders[0] == orders[2] != orders[1]


def test_a_stream_travels_light(store):
    stream = opened(store).ned.to_torch()
    data = pickle.dumps(stream)
    assert len(data) < responses(N_IMAGES, 300).response.nbytes / 10
    assert len(list(pickle.loads(data))) == N_IMAGES


def test_stimuli_and_responses_stay_together():
    ds = responses(12, 5).isel(subject=0)
    pixels = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    ds["pixels"] = (("image", "y", "x", "rgb"), pixels)
    found = list(ds.ned.to_torch(("pixels", "response"), labels=("image_id", "caption")))
    for sample in found:
        row = int(sample["pixels"][0, 0, 0])
        assert sample["pixels"].dtype == torch.uint8
        assert sample["caption"] == f"picture {row}"
        np.testing.assert_array_equal(sample["response"], ds.response.values[row])
    assert len(found) == 12


@needs_proc
def test_memory_holds_a_few_chunks(tmp_path):
    """A store of 48 MB streams through a process that takes up little more than it began with."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3000, 4000)).astype(np.float32)
    ds = xr.Dataset(
        {"response": (("image", "unit"), values, {"units": "1"})},
        {"image_id": ("image", np.array([f"t:{i}" for i in range(3000)], object))},
    )
    ds.to_zarr(tmp_path / "big.zarr", encoding={"response": {"chunks": (100, 4000)}})
    script = f"""
import xarray as xr, nedx
from tests.memory import peak_kib
ds = xr.open_zarr({str(tmp_path / "big.zarr")!r})
stream = ds.ned.to_torch(mixed=4)
iterator = iter(stream)
total = sum(float(next(iterator)["response"][0]) for _ in range(400))
before = peak_kib()
count = 400 + sum(1 for _ in iterator)
print(count, peak_kib() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 3000
    assert grown < 20 * 1024


def test_what_has_no_samples_is_refused(store):
    ds = opened(store)
    with pytest.raises(SelectionError, match="no samples"):
        ds.ned.to_torch(("response", "noise_ceiling"))
    with pytest.raises(SelectionError, match="one chunk or more"):
        ds.ned.to_torch(mixed=0)
    with pytest.raises(SelectionError, match="unknown variable"):
        ds.ned.to_torch("pixel")
