"""What goes wrong on the way is tried again or said; it never reads as data."""

from __future__ import annotations

import pickle
import shutil

import aiohttp
import dask
import numpy as np
import pytest
import xarray as xr

from nedx.errors import CorruptStoreError, CredentialsError, StoreError
from nedx.store import location
from nedx.store.opening import open_store
from nedx.store.writing import to_zarr


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(location, "FIRST_DELAY", 0.001)


@pytest.fixture
def damaged(shelf, tmp_path):
    """A copy to damage, and one chunk of it."""
    path = shutil.copytree(shelf / "plain.zarr", tmp_path / "damaged.zarr")
    return path, path / "response" / "c" / "1" / "3" / "2"


def test_a_chunk_that_is_gone_is_an_error_not_fill_values(damaged):
    path, chunk = damaged
    chunk.unlink()
    # What is prevented: xarray reads NaN, and says nothing.
    assert np.isnan(xr.open_zarr(path)["response"][1, 60:80, 200:300].values).all()
    opened = open_store(path)
    np.testing.assert_array_equal(opened["response"][0].shape, (300, 900))
    opened["response"][0].compute()
    with pytest.raises(CorruptStoreError, match=r"c/1/3/2 was written and is gone.*verify"):
        opened["response"][1, 70:72, 250:252].compute()


def test_a_shard_that_is_gone_is_an_error_too(shelf, tmp_path):
    path = shutil.copytree(shelf / "sharded.zarr", tmp_path / "s.zarr")
    (path / "response" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(CorruptStoreError, match="response/c/0/0/0 was written and is gone"):
        open_store(path)["response"][0, 0].compute()


def test_a_label_that_is_gone_is_an_error(damaged):
    path, _ = damaged
    shutil.rmtree(path / "vertex" / "c")
    with pytest.raises(CorruptStoreError, match="vertex/c/0"):
        open_store(path)


def test_chunks_that_were_never_written_read_as_fill_values(tmp_path):
    """Other programs leave chunks of fill values out, and that is their right."""
    ds = xr.Dataset({"response": (("image", "voxel"), np.full((4, 4), np.nan, np.float32))})
    ds.to_zarr(tmp_path / "sparse.zarr", zarr_format=3, consolidated=True)
    assert not (tmp_path / "sparse.zarr" / "response" / "c").exists()
    assert np.isnan(open_store(tmp_path / "sparse.zarr")["response"].values).all()


@pytest.mark.parametrize("name", ["plain.zarr", "sharded.zarr"])
@pytest.mark.parametrize("flip", [0.1, 0.5, 0.9])
def test_a_flipped_byte_on_disk_is_found(name, flip, shelf, tmp_path):
    path = shutil.copytree(shelf / name, tmp_path / "flipped.zarr")
    chunk = path / "response" / "c" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[int(len(data) * flip)] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"'response'.*nedx verify"):
        open_store(path)["response"].compute()


def test_a_chunk_cut_short_on_disk_is_found(damaged):
    path, chunk = damaged
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(CorruptStoreError, match="nedx verify"):
        open_store(path)["response"].compute()


def test_a_flipped_byte_of_a_label_is_found(damaged):
    path, _ = damaged
    labels = path / "image_id" / "c" / "0"
    data = bytearray(labels.read_bytes())
    data[len(data) // 2] ^= 1
    labels.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="'image_id'"):
        open_store(path)


def test_a_flipped_byte_of_what_is_read_later_is_found(damaged):
    path, _ = damaged
    captions = path / "caption" / "c" / "0"
    data = bytearray(captions.read_bytes())
    data[len(data) // 2] ^= 1
    captions.write_bytes(data)
    opened = open_store(path)
    with pytest.raises(CorruptStoreError, match="'caption'"):
        opened["caption"].load()


def test_default_codecs_do_not_notice_what_ours_do(truth, tmp_path):
    """Fact 5 of the spec: why every chunk carries a crc32c."""
    for name, write in {
        "theirs": lambda path: truth.drop_encoding().to_zarr(
            path, zarr_format=3, encoding={"response": {"compressors": None}}
        ),
        "ours": lambda path: to_zarr(truth, path, keep_bits=None),
    }.items():
        write(tmp_path / name)
        chunk = next(p for p in (tmp_path / name / "response" / "c").rglob("*") if p.is_file())
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    silent = open_store(tmp_path / "theirs")["response"].values
    assert (silent != truth["response"].values).sum() == 1
    with pytest.raises(CorruptStoreError):
        open_store(tmp_path / "ours")["response"].compute()


def test_chains_of_caches_are_refused_by_name(web):
    """Fact 12 of the spec: fsspec's caches do not work with Zarr 3; a pulled copy does."""
    with pytest.raises(StoreError, match=rf"type: nedx pull {web.url}/plain\.zarr"):
        open_store(f"simplecache::{web.url}/plain.zarr")


@pytest.mark.parametrize("mode", ["500", "503", "429", "reset", "truncate"])
def test_transient_failures_of_a_web_server_are_tried_again(mode, web, truth):
    opened = open_store(f"{web.url}/plain.zarr")
    with web.counter.faulty(mode, match="/c/", times=3):
        values = opened["response"][0, :40, :200].values
    np.testing.assert_array_equal(values, truth["response"].values[0, :40, :200])
    assert web.counter.fault is None


def test_xarray_alone_fails_at_the_first(web):
    """What is prevented: fsspec's http does not try again."""
    opened = xr.open_zarr(f"{web.url}/plain.zarr", zarr_format=3)
    fault = web.counter.faulty("503", match="/response/c/", times=1)
    with fault, pytest.raises(aiohttp.ClientResponseError):
        opened["response"][0, 0, :50].compute()


def test_a_server_that_stays_down_is_an_error(web):
    with web.counter.faulty("503"), pytest.raises(StoreError, match="503"):
        open_store(f"{web.url}/plain.zarr")
    assert web.counter.count() == location.ATTEMPTS


def test_a_refusal_is_not_tried_again(web):
    with web.counter.faulty("403"), pytest.raises(CredentialsError, match="refuses access"):
        open_store(f"{web.url}/plain.zarr")
    assert web.counter.count() == 1


@pytest.mark.parametrize("name", ["plain.zarr", "sharded.zarr"])
def test_a_flipped_byte_on_the_way_is_found(name, web):
    opened = open_store(f"{web.url}/{name}")
    with (
        web.counter.faulty("corrupt", match="/response/c/"),
        pytest.raises(CorruptStoreError, match="differs from what was written"),
    ):
        opened["response"][0, :20, :100].compute()


def test_a_server_without_ranges_is_named(web):
    opened = open_store(f"{web.url}/sharded.zarr")
    with (
        web.counter.faulty("norange", match="/response/c/"),
        pytest.raises(StoreError, match="ignores Range requests"),
    ):
        opened["response"][0, :20, :100].compute()


def test_what_was_opened_can_be_sent_to_other_processes(web, truth):
    opened = open_store(f"{web.url}/plain.zarr", subject=2, roi="V1")
    there = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(
        there["response"].values, truth["response"].values[1:, :, 130:190]
    )
    with dask.config.set(scheduler="processes", num_workers=1):
        np.testing.assert_array_equal(opened["response"][:, :3].values, there["response"][:, :3])
