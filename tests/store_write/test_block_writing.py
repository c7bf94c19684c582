"""What is written is what was given, whole, labelled, and identical after a resume."""

from __future__ import annotations

import json
import pickle

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nedx.errors import (
    AlignmentError,
    IncompleteStoreError,
    StoreError,
    StoreExistsError,
)
from nedx.store.codecs import round_mantissa
from nedx.store.layout import plan_dataset
from nedx.store.location import Location
from nedx.store.manifest import read_manifest
from nedx.store.running import run_blocks
from nedx.store.writing import BlockWriter, to_zarr


def test_a_store_reads_back_with_plain_xarray(responses, tmp_path, small_blocks):
    to_zarr(responses, tmp_path / "a", keep_bits=None, layout=small_blocks(responses))
    found = xr.open_zarr(tmp_path / "a", chunks=None)
    for name in responses.variables:
        expected = responses[name].values.astype(found[name].dtype)
        np.testing.assert_array_equal(found[name].values, expected)
    assert found.response.attrs["units"] == "1"
    assert found.attrs["title"] == "test"
    assert found.attrs["license"] == "CC0-1.0"
    assert found.attrs["nedx_status"] == "complete"


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunks=st.tuples(*[st.integers(1, 5)] * 3),
    times=st.one_of(st.none(), st.tuples(*[st.integers(1, 3)] * 3)),
    block=st.integers(1, 12),
    lazy=st.integers(1, 9),
    workers=st.integers(1, 2),
    axis=st.permutations(["subject", "image", "voxel"]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_any_layout_round_trips(tmp_path_factory, shape, chunks, times, block, lazy, workers, axis):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    ds = xr.Dataset({"response": (axis, da.from_array(values, chunks=lazy))})
    cut = dict(zip(axis, chunks, strict=True))
    shards = None
    if times:
        shards = {"response": {d: c * t for (d, c), t in zip(cut.items(), times, strict=True)}}
    layout = plan_dataset(ds, chunks={"response": cut}, shards=shards, block=block)
    place = tmp_path_factory.mktemp("any") / "a"
    to_zarr(ds, place, keep_bits=None, layout=layout, workers=workers)
    stored = zarr.open_array(place, path="response", mode="r")
    assert stored.chunks == chunks
    np.testing.assert_array_equal(stored[:], values)


@pytest.mark.parametrize("keep", [7, 10, 16])
def test_rounding_is_to_nearest_and_keeps_what_is_not_finite(keep):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=5000) * 10.0 ** rng.integers(-30, 30, 5000)).astype(np.float32)
    rounded = round_mantissa(values, keep)
    # An independent truth: the significand as a double, rounded by numpy (ties to even).
    mantissa, exponent = np.frexp(values.astype(np.float64))
    expected = np.ldexp(np.round(mantissa * 2.0 ** (keep + 1)), exponent - keep - 1)
    np.testing.assert_array_equal(rounded, expected.astype(np.float32))
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo("f4").max], np.float32)
    kept = round_mantissa(odd, keep)
    np.testing.assert_array_equal(kept[:5], odd[:5])
    assert np.signbit(kept[4])
    assert np.isfinite(kept[5])


def test_rounding_is_stated_and_bounded(responses, tmp_path):
    to_zarr(responses, tmp_path / "a")
    found = xr.open_zarr(tmp_path / "a", chunks=None)
    assert found.response.attrs["significant_bits"] == 10
    np.testing.assert_allclose(found.response, responses.response, rtol=2**-11)
    assert "significant_bits" not in found.encoding_accuracy.attrs
    np.testing.assert_array_equal(found.encoding_accuracy, responses.encoding_accuracy)


def test_float16_is_stored_as_such_and_never_overflows(responses, tmp_path):
    to_zarr(responses, tmp_path / "a", dtype="float16")
    assert zarr.open_array(tmp_path / "a", path="response").dtype == np.float16
    big = responses.assign(response=responses.response * 1e6)
    with pytest.raises(StoreError, match="dtype='float32'"):
        to_zarr(big, tmp_path / "b", dtype="float16")


def test_every_chunk_ends_with_a_checksum(responses, tmp_path, small_blocks):
    to_zarr(responses, tmp_path / "a", layout=small_blocks(responses))
    for path in (tmp_path / "a").rglob("zarr.json"):
        content = json.loads(path.read_text())
        if content["node_type"] == "array":
            codecs = content["codecs"]
            if codecs[0]["name"] == "sharding_indexed":
                codecs = codecs[0]["configuration"]["codecs"]
            assert codecs[-1]["name"] == "crc32c"


def test_an_existing_store_is_left_as_it_is(responses, tmp_path, store_bytes):
    to_zarr(responses, tmp_path / "a")
    before = store_bytes(tmp_path / "a")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        to_zarr(responses * 2, tmp_path / "a")
    assert store_bytes(tmp_path / "a") == before
    to_zarr(responses * 2, tmp_path / "a", overwrite=True, keep_bits=None)
    found = xr.open_zarr(tmp_path / "a", chunks=None)
    np.testing.assert_array_equal(found.response, responses.response * 2)


def test_a_folder_of_other_things_is_never_deleted(responses, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreExistsError, match="no Zarr store"):
        to_zarr(responses, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_the_own_source_is_refused(responses, tmp_path, store_bytes):
    to_zarr(responses, tmp_path / "a")
    before = store_bytes(tmp_path / "a")
    again = xr.open_zarr(tmp_path / "a")
    with pytest.raises(StoreExistsError, match="read from"):
        to_zarr(again, tmp_path / "a", overwrite=True)
    assert store_bytes(tmp_path / "a") == before


def test_a_resumed_store_is_byte_identical(responses, tmp_path, small_blocks, store_bytes):
    layout = small_blocks(responses)
    to_zarr(responses, tmp_path / "whole", layout=layout)
    computed = []

    def failing(block):
        computed.append(block.shape)
        if len(computed) > 4:
            raise RuntimeError("power cut")
        return block

    broken = responses.assign(
        response=responses.response.copy(
            data=responses.response.data.map_blocks(failing, meta=np.empty((0, 0, 0), "f4"))
        )
    )
    with pytest.raises(RuntimeError, match="power cut"):
        to_zarr(broken, tmp_path / "cut", layout=layout, recipe="r")
    partial = xr.open_zarr(tmp_path / "cut", chunks=None)
    assert partial.attrs["nedx_status"] == "partial"
    date = partial.attrs["date_created"]
    writer = BlockWriter.resume(tmp_path / "cut", "r")
    assert 0 < len(writer.pending()) < len(writer.blocks)
    to_zarr(responses, tmp_path / "cut", layout=layout, recipe="r", resume=True)
    assert xr.open_zarr(tmp_path / "cut").attrs["date_created"] == date
    cut, whole = store_bytes(tmp_path / "cut"), store_bytes(tmp_path / "whole")
    cut.pop("_nedx/manifest.json")
    whole.pop("_nedx/manifest.json")
    assert cut == whole


def test_resuming_another_recipe_is_refused_and_named(responses, tmp_path, small_blocks):
    layout = small_blocks(responses)
    BlockWriter.create(responses, tmp_path / "a", {"model": "m1", "images": "i"}, layout=layout)
    with pytest.raises(StoreError, match="another recipe: model differ"):
        to_zarr(responses, tmp_path / "a", resume=True, recipe={"model": "m2", "images": "i"})


def test_resuming_other_data_is_refused(responses, tmp_path, small_blocks):
    from nedx.store.building import dataset_recipe

    parts = dataset_recipe(responses)
    BlockWriter.create(responses, tmp_path / "a", parts, layout=small_blocks(responses))
    with pytest.raises(StoreError, match="another recipe: response differ"):
        to_zarr(responses.assign(response=responses.response + 1), tmp_path / "a", resume=True)


def test_resume_of_a_complete_store_does_nothing(responses, tmp_path, store_bytes):
    to_zarr(responses, tmp_path / "a")
    before = store_bytes(tmp_path / "a")
    to_zarr(responses, tmp_path / "a", resume=True)
    assert store_bytes(tmp_path / "a") == before
    with pytest.raises(StoreError, match="another recipe"):
        to_zarr(responses * 2, tmp_path / "a", resume=True)


def test_a_store_in_other_units_is_not_taken_for_this_one(responses, tmp_path):
    to_zarr(responses, tmp_path / "a")
    told = responses.copy()
    told.response.attrs |= {"units": "percent", "normalization": "none"}
    with pytest.raises(StoreError, match="another recipe"):
        to_zarr(told, tmp_path / "a", resume=True)


def test_a_lost_object_is_written_again(responses, tmp_path, small_blocks):
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=small_blocks(responses))
    run_blocks(writer, responses)
    assert writer.pending() == []
    (tmp_path / "a/response/c/1/1/0").unlink()
    assert [b.start for b in writer.pending()] == [8]
    cut = tmp_path / "a/response/c/0/0/0"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert [b.start for b in writer.pending()] == [0, 8]
    whole = tmp_path / "a/response/c/0/2/0"
    data = bytearray(whole.read_bytes())
    data[10] ^= 1
    whole.write_bytes(bytes(data))
    assert [b.start for b in writer.pending(rehash=True)] == [0, 8, 16]
    with pytest.raises(IncompleteStoreError, match="2 of 3 blocks"):
        writer.finalize()


@pytest.mark.filterwarnings("ignore:Object at README.md")
def test_finalize_removes_leftovers_only(responses, tmp_path, small_blocks):
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=small_blocks(responses))
    run_blocks(writer, responses)
    left = tmp_path / "a/response/c/0/0/0.1f2e.partial"
    left.write_bytes(b"half")
    (tmp_path / "a/response/c/0/99").mkdir()
    (tmp_path / "a/response/c/0/99/0").write_bytes(b"not in the grid")
    (tmp_path / "a/README.md").write_text("mine")
    writer.finalize()
    assert not left.exists()
    assert not (tmp_path / "a/response/c/0/99/0").exists()
    assert (tmp_path / "a/README.md").exists()
    assert [p.name for p in (tmp_path / "a/_nedx").iterdir()] == ["manifest.json"]
    keys = set(read_manifest(Location.of(tmp_path / "a")).objects)
    on_disk = {
        p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*") if p.is_file()
    }
    assert keys == on_disk - {"README.md", "_nedx/manifest.json"}


def test_parts_of_one_plan_write_together(responses, tmp_path, small_blocks, store_bytes):
    layout = small_blocks(responses)
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=layout)
    assert run_blocks(writer, responses, part="1/2") == 2
    other = pickle.loads(pickle.dumps(BlockWriter.resume(tmp_path / "a", "r")))
    assert run_blocks(other, responses, part=(2, 2), workers=2) == 1
    other.finalize()
    to_zarr(responses, tmp_path / "b", layout=layout, recipe="r")
    assert store_bytes(tmp_path / "a") == store_bytes(tmp_path / "b")
    with pytest.raises(StoreError, match="1 to 2"):
        writer.pending("0/2")


def test_all_variables_of_a_block_share_one_pass(responses, tmp_path, small_blocks):
    calls = []

    def forward(x):
        calls.append(x.shape)
        return x * 2

    hidden = responses.response.data.rechunk((2, 8, 6)).map_blocks(
        forward, dtype="f4", meta=np.empty((0, 0, 0), "f4")
    )
    ds = responses.assign(
        response=(responses.response.dims, hidden + 1),
        components=(responses.response.dims, hidden - 1),
    )
    layout = plan_dataset(ds, chunks={n: {"image": 8} for n in ("response", "components")}, block=8)
    to_zarr(ds, tmp_path / "a", layout=layout, keep_bits=None)
    assert len(calls) == 3
    found = xr.open_zarr(tmp_path / "a", chunks=None)
    np.testing.assert_array_equal(found.components, responses.response * 2 - 1)


def test_ragged_subjects_are_groups(responses, tmp_path):
    children = {
        "/sub-01": responses.isel(subject=0, drop=True),
        "/sub-02": responses.isel(subject=1, voxel=slice(0, 4), drop=True),
    }
    root = xr.Dataset(attrs={"title": "ragged"})
    to_zarr(xr.DataTree.from_dict({"/": root, **children}), tmp_path / "a", keep_bits=None)
    found = xr.open_datatree(tmp_path / "a", engine="zarr", chunks=None)
    assert found.attrs["nedx_kind"] == "ragged"
    assert found.attrs["title"] == "ragged"
    for path, child in children.items():
        np.testing.assert_array_equal(found[path].response, child.response)
        assert list(found[path].image_id.values) == list(child.image_id.values)
    assert len(read_manifest(Location.of(tmp_path / "a")).fingerprint) == 64


def test_memory_stores_work_alike(responses, small_blocks):
    place = "memory://nedx-writing/a"
    to_zarr(responses, place, layout=small_blocks(responses), keep_bits=None, workers=2)
    found = zarr.open_array(Location.of(place).zarr_store(), path="response", mode="r")
    np.testing.assert_array_equal(found[:], responses.response)
    with pytest.raises(StoreExistsError):
        to_zarr(responses, place)
    Location.of(place).delete(recursive=True)


def test_creating_leaves_nothing_where_it_fails(tmp_path, responses):
    def bad(block):
        raise RuntimeError("no weights")

    ds = responses.assign(extra=(("voxel",), da.zeros(6).map_blocks(bad, dtype="f8")))
    with pytest.raises(RuntimeError, match="no weights"):
        to_zarr(ds, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_blocks_of_another_size_are_refused(responses, tmp_path, small_blocks):
    writer = BlockWriter.create(responses, tmp_path / "a", "r", layout=small_blocks(responses))
    block = writer.blocks[0]
    with pytest.raises(AlignmentError, match="whole or not at all"):
        writer.write(block, responses.isel(image=slice(0, 5)))
    with pytest.raises(AlignmentError, match="response"):
        writer.write(block, responses[["encoding_accuracy"]])
    with pytest.raises(AlignmentError, match="no block"):
        writer.write(type(block)(0, 0, 5), responses.isel(image=slice(0, 5)))


def test_bad_input_is_told_at_once_and_changes_nothing(responses, tmp_path):
    bad = responses.assign_attrs(when=np.datetime64("2024-01-01"), raw=b"x")
    bad["response"].attrs["who"] = {1, 2}
    with pytest.raises(StoreError, match="(?s)'when'.*'raw'.*'who'.*'response'"):
        to_zarr(bad, tmp_path / "a")
    stacked = responses.stack(presentation=("subject", "image"))
    with pytest.raises(StoreError, match="reset_index"):
        to_zarr(stacked, tmp_path / "a")
    mixed = responses.assign_coords(label=("image", np.array(["a", None] * 10, dtype=object)))
    with pytest.raises(StoreError, match="'label' holds"):
        to_zarr(mixed, tmp_path / "a")
    with pytest.raises(StoreError, match="astype"):
        to_zarr(responses.assign_coords(b=("image", np.array([b"a"] * 20))), tmp_path / "a")
    with pytest.raises(StoreError, match="float32, float16"):
        to_zarr(responses, tmp_path / "a", dtype="int16")
    with pytest.raises(StoreError, match="keep_bits"):
        to_zarr(responses, tmp_path / "a", keep_bits=40)
    assert list(tmp_path.iterdir()) == []


def test_one_number_a_sample_stays_exact(responses, tmp_path):
    onset = np.linspace(0.1, 5000.3, 20)
    to_zarr(responses.assign(onset=("image", onset)), tmp_path / "a")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", path="onset")[:], onset)


def test_a_store_opened_without_dask_is_copied_block_by_block(responses, tmp_path):
    to_zarr(responses, tmp_path / "a")
    to_zarr(xr.open_zarr(tmp_path / "a", chunks=None), tmp_path / "b")
    first, second = (zarr.open_array(tmp_path / n, path="response")[:] for n in "ab")
    np.testing.assert_array_equal(first, second)


def test_no_images_are_a_store_without_blocks(responses, tmp_path):
    to_zarr(responses.isel(image=slice(0, 0)), tmp_path / "a")
    found = xr.open_zarr(tmp_path / "a", chunks=None)
    assert found.sizes["image"] == 0
    assert found.attrs["nedx_blocks"] == 0


def test_weights_without_samples_are_written_at_once(tmp_path):
    weights = np.random.default_rng(0).normal(size=(3, 500, 40)).astype(np.float32)
    ds = xr.Dataset({"readout": (("subject", "vertex", "component"), da.from_array(weights))})
    layout = plan_dataset(ds, chunks={"readout": {"subject": 1, "vertex": 64}})
    to_zarr(ds, tmp_path / "a", layout=layout)
    stored = zarr.open_array(tmp_path / "a", path="readout", mode="r")
    assert stored.chunks == (1, 64, 40)
    np.testing.assert_array_equal(stored[:], weights)
