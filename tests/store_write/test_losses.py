"""Each silent loss of data that today's stack allows, shown first, then shown not to happen."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from nedx.errors import AlignmentError, StoreError
from nedx.store.layout import ArrayLayout, Block, Layout, plan_dataset
from nedx.store.location import Location
from nedx.store.manifest import read_manifest
from nedx.store.running import run_blocks
from nedx.store.verifying import verify
from nedx.store.writing import BlockWriter, to_zarr


def _plain_xarray(ds, place, **encoding):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.to_zarr(place, zarr_format=3, encoding={"response": encoding})


def test_two_writers_never_share_a_shard(responses, tmp_path, small_blocks):
    # What happens without blocks: 4 threads, each a quarter of one shard.
    loose = zarr.create_array(
        tmp_path / "loose", shape=(64, 500), chunks=(4, 500), shards=(64, 500), dtype="f4"
    )

    def quarter(i):
        loose[16 * i : 16 * (i + 1)] = 1.0

    for _ in range(20):
        loose[:] = 0.0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(quarter, range(4)))
        if not (loose[:] == 1.0).all():
            break
    else:
        pytest.skip("zarr no longer loses data of two writers on a shard")

    ds = xr.Dataset({"response": (("image", "voxel"), np.ones((64, 500), np.float32))})
    layout = plan_dataset(
        ds, chunks={"response": {"image": 4}}, shards={"response": {"image": 16}}, block=4
    )
    assert layout.block == 16
    writer = BlockWriter.create(ds, tmp_path / "a", "r", layout=layout)
    parts = [BlockWriter.resume(tmp_path / "a") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: run_blocks(parts[i], ds, part=(i + 1, 4)), range(4)))
    writer.finalize()
    assert (zarr.open_array(tmp_path / "a", path="response")[:] == 1.0).all()


def test_a_layout_with_two_writers_on_a_shard_is_refused(responses, tmp_path):
    plan = plan_dataset(responses)
    arrays = {**plan.arrays, "response": ArrayLayout((1, 4, 6), (2, 8, 6))}
    layout = Layout(arrays, "image", 4, 20, ("response",))
    with pytest.raises(AlignmentError, match="multiple of 8"):
        to_zarr(responses, tmp_path / "a", layout=layout)
    assert not (tmp_path / "a").exists()


def test_misaligned_numpy_regions_are_refused(responses, tmp_path, small_blocks):
    # Xarray checks dask chunks only: this region cuts through a shard, and passes.
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=small_blocks(responses))
    piece = responses[["response"]].isel(image=slice(2, 6)).load().drop_vars(responses.coords)
    piece.to_zarr(tmp_path / "a", region={"image": slice(2, 6)}, mode="r+")
    with pytest.raises(AlignmentError):
        writer.write(Block(0, 2, 6), piece)
    with pytest.raises(AlignmentError):
        writer.write(writer.blocks[0], piece)


def test_a_flipped_bit_raises_on_reading(responses, tmp_path):
    to_zarr(responses, tmp_path / "a")
    for name in ("response/c/0/0/0", "image_id/c/0", "encoding_accuracy/c/0/0"):
        path = tmp_path / "a" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(bytes(data))
    for name in ("response", "image_id", "encoding_accuracy"):
        with pytest.raises((ValueError, RuntimeError), match="checksum"):
            zarr.open_array(tmp_path / "a", path=name, mode="r")[...]


def test_chunks_of_fill_values_are_written(tmp_path):
    # Without write_empty_chunks a chunk of zeros or NaN cannot be told from one never written.
    zeros = np.zeros((8, 4), np.int16)
    nans = np.full((8, 4), np.nan, np.float32)
    ds = xr.Dataset({"count": (("image", "unit"), zeros), "response": (("image", "unit"), nans)})
    _plain_xarray(ds, tmp_path / "plain")
    assert not list((tmp_path / "plain/count").glob("c/*/*"))

    chunks = {n: {"image": 4} for n in ("count", "response")}
    to_zarr(ds, tmp_path / "a", layout=plan_dataset(ds, chunks=chunks, block=4))
    for name in ("count", "response"):
        assert len(list((tmp_path / "a" / name).glob("c/*/*"))) == 2
    assert zarr.open_array(tmp_path / "a", path="response").nchunks_initialized == 2


def test_coordinates_of_fill_values_are_written(responses, tmp_path):
    to_zarr(responses, tmp_path / "a")
    assert (tmp_path / "a/cortex/c/0").exists()


@pytest.mark.filterwarnings("ignore:The data type", "ignore:Consolidated metadata")
def test_lazy_coordinates_are_written(responses, tmp_path):
    # They lie along the images, but belong to the template: no block would write them.
    count = responses.sizes["image"]
    lazy = da.arange(count, chunks=7).astype(np.float64)
    to_zarr(responses.assign_coords(onset=("image", lazy, {"units": "s"})), tmp_path / "a.zarr")
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr")["onset"], np.arange(count))


def test_finishing_keeps_all_attributes(responses, tmp_path):
    # Dataset.to_zarr(mode="a") of something without attributes wipes those of the store.
    _plain_xarray(responses, tmp_path / "plain")
    xr.Dataset({"new": ("voxel", np.zeros(6))}).to_zarr(tmp_path / "plain", mode="a")
    assert "license" not in xr.open_zarr(tmp_path / "plain").attrs

    to_zarr(responses, tmp_path / "a")
    for consolidated in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = xr.open_zarr(tmp_path / "a", consolidated=consolidated)
        assert {**found.attrs, **responses.attrs} == found.attrs
        assert found.attrs["nedx_status"] == "complete"
        assert found.response.attrs["units"] == "1"


def test_a_missing_chunk_is_named(responses, tmp_path, small_blocks):
    to_zarr(responses, tmp_path / "a", layout=small_blocks(responses))
    (tmp_path / "a/response/c/1/1/0").unlink()
    # Zarr gives fill values, and no error.
    assert np.isnan(zarr.open_array(tmp_path / "a", path="response")[1, 8:16]).all()
    report = verify(tmp_path / "a")
    assert not report.ok
    assert [str(bad) for bad in report.bad] == ["response/c/1/1/0: missing"]


def test_an_unfinished_store_says_so(responses, tmp_path, small_blocks):
    BlockWriter.create(responses, tmp_path / "a", "r", layout=small_blocks(responses))
    found = xr.open_zarr(tmp_path / "a", chunks=None)
    assert found.attrs["nedx_status"] == "partial"
    assert np.isnan(found.response).all()
    assert not (tmp_path / "a/_nedx/manifest.json").exists()


def test_the_encoding_of_another_store_is_not_taken_over(responses, tmp_path, small_blocks):
    to_zarr(responses, tmp_path / "a", layout=small_blocks(responses), keep_bits=None)
    again = xr.open_zarr(tmp_path / "a").isel(image=slice(3, 17))
    assert again.response.encoding["shards"] == (1, 8, 6)
    to_zarr(again, tmp_path / "b", keep_bits=None)
    stored = zarr.open_array(tmp_path / "b", path="response", mode="r")
    assert stored.shards is None
    np.testing.assert_array_equal(stored[:], responses.response[:, 3:17])


def test_packed_integers_are_never_written(responses, tmp_path):
    # int16 packing wraps at its limits, and what is unwritten reads as 0.
    packed = responses.copy()
    packed["response"] = packed.response * 10
    packed["response"].encoding = {"dtype": "int16", "scale_factor": 0.001, "_FillValue": -32768}
    _plain_xarray(packed.drop_encoding(), tmp_path / "raw")
    to_zarr(packed, tmp_path / "a", keep_bits=None)
    stored = zarr.open_array(tmp_path / "a", path="response", mode="r")
    assert stored.dtype == np.float32
    assert "scale_factor" not in stored.attrs
    np.testing.assert_array_equal(stored[:], packed.response)
    assert np.isnan(stored.fill_value)


def test_graphs_that_do_not_fit_the_shards_are_written_whole(tmp_path):
    # dask.array.to_zarr loses data where its chunks cut through shards.
    values = np.arange(30 * 7, dtype=np.float32).reshape(30, 7)
    ds = xr.Dataset({"response": (("image", "unit"), da.from_array(values, chunks=(7, 3)))})
    layout = plan_dataset(
        ds, chunks={"response": {"image": 4, "unit": 2}}, shards={"response": {"image": 8}}, block=8
    )
    to_zarr(ds, tmp_path / "a", layout=layout, workers=4, keep_bits=None)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", path="response")[:], values)


def test_strings_come_back_as_they_were_and_without_a_warning(responses, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_zarr(responses, tmp_path / "a")
    stored = zarr.open_array(tmp_path / "a", path="image_id", mode="r")
    assert stored.metadata.to_dict()["data_type"] == "string"
    assert list(stored[:]) == list(responses.image_id.values)


def test_a_dtype_that_was_promised_is_held_to(tmp_path):
    # A graph may give another dtype than it declared; casting would cut 0.9 to 0.
    lying = da.ones((8, 3), chunks=-1).map_blocks(
        lambda x: x * 0.9, dtype="u1", meta=np.empty((0, 0), "u1")
    )
    ds = xr.Dataset({"pixels": (("image", "unit"), lying)})
    with pytest.raises(StoreError, match="float64"):
        to_zarr(ds, tmp_path / "a")


def test_consolidated_metadata_know_every_array(responses, tmp_path):
    to_zarr(responses, tmp_path / "a")
    group = zarr.open_group(tmp_path / "a", mode="r", use_consolidated=True)
    assert set(dict(group.members())) == set(responses.variables)
    assert group.attrs["nedx_status"] == "complete"


def test_the_fingerprint_changes_with_a_single_value(responses, tmp_path):
    to_zarr(responses, tmp_path / "a", keep_bits=None)
    values = responses.response.values.copy()
    values[1, 2, 3] += 1
    to_zarr(
        responses.assign(response=responses.response.copy(data=values)),
        tmp_path / "b",
        keep_bits=None,
    )
    first, second = (read_manifest(Location.of(tmp_path / n)) for n in "ab")
    changed = [
        k for k in first.objects if first.objects[k] != second.objects[k] and k != "zarr.json"
    ]
    assert changed == ["response/c/1/0/0"]
    assert first.fingerprint != second.fingerprint
