"""Opening: what it returns, what it asks of a server, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import socket

import dask
import numpy as np
import pytest
import xarray as xr
import zarr

from nedx.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    SchemaError,
    SelectionError,
    StoreError,
)
from nedx.store.opening import IncompleteStoreWarning, open_store
from nedx.store.writing import BlockWriter, to_zarr
from tests.laziness import computes_at_most
from tests.stored import stored_bytes


def copied(source, target):
    return shutil.copytree(source, target)


def edit_attrs(path, **attrs):
    """Change the root attributes in the file, as another program would."""
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"].update(attrs)
    (path / "zarr.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize("name", ["plain.zarr", "sharded.zarr"])
@pytest.mark.parametrize("where", ["local", "http", "memory"])
def test_gives_back_what_was_written(where, name, shelf, web, truth):
    place = {"local": shelf / name, "http": f"{web.url}/{name}", "memory": f"memory://t/{name}"}
    if where == "memory":
        import fsspec

        fsspec.filesystem("memory").put(str(shelf / name), f"/t/{name}", recursive=True)
    with computes_at_most(0):
        opened = open_store(place[where])
    for variable in ("response", "noise_ceiling", "roi_mask", "caption", "vertex"):
        np.testing.assert_array_equal(opened[variable].values, truth[variable].values)
    assert opened["response"].dims == truth["response"].dims
    assert opened["response"].attrs == truth["response"].attrs
    assert opened["response"].dtype == np.float32


def test_xarray_reads_the_same(shelf):
    ours = open_store(shelf / "plain.zarr").drop_indexes("image_id")
    theirs = xr.open_zarr(shelf / "plain.zarr")
    for name in theirs.variables:
        np.testing.assert_array_equal(
            ours[name].values, theirs[name].values.astype(ours[name].dtype)
        )


def test_image_id_is_the_index_again(shelf, truth):
    opened = open_store(shelf / "plain.zarr")
    row = opened.sel(image_id="t:0123", subject="sub-02")["response"]
    np.testing.assert_array_equal(row.values, truth["response"].values[1, 123])


@pytest.mark.parametrize(
    ("selection", "labels"),
    [
        ({}, {"image_id", "subject", "vertex"}),
        ({"subject": 2}, {"image_id", "subject", "vertex"}),
        ({"subject": 2, "roi": "V1"}, {"image_id", "subject", "vertex", "roi", "roi_mask"}),
    ],
)
def test_opens_with_one_request_for_metadata_and_one_for_each_label(selection, labels, web):
    with web.counter.slow(0.05):
        open_store(f"{web.url}/plain.zarr", **selection)
    asked = [seen.path.split("/")[2] for seen in web.counter.seen]
    assert asked[0] == "zarr.json"
    assert sorted(asked[1:]) == sorted(labels)
    assert len(asked) <= 8
    assert web.counter.most_at_once == len(labels), "labels are not asked for together"


def test_other_coordinates_are_read_when_they_are_used(web, truth):
    opened = open_store(f"{web.url}/plain.zarr")
    web.counter.forget()
    np.testing.assert_array_equal(opened["caption"][:3].values, truth["caption"][:3].values)
    assert web.counter.count("/caption/") == web.counter.count() == 1


@pytest.mark.parametrize("name", ["plain.zarr", "sharded.zarr"])
def test_random_images_of_one_roi_transfer_what_their_chunks_hold(name, shelf, web, truth):
    rng = np.random.default_rng(1)
    images = rng.permutation(truth.sizes["image"])[:3]
    vertices = np.flatnonzero(truth["roi_mask"].values[1, 0])
    opened = open_store(f"{web.url}/{name}", subject=2, roi="V1")
    web.counter.forget()
    values = opened["response"].isel(image=images).values
    np.testing.assert_array_equal(
        values, truth["response"].values[1:, images][..., vertices], strict=True
    )
    held = stored_bytes(shelf / name, [1], images, vertices)
    transferred = web.counter.bytes()
    assert held <= transferred <= 2 * held
    if name == "plain.zarr":
        assert transferred == held


@pytest.mark.parametrize("when", ["opening", "afterwards"])
def test_selecting_saves_the_reading_whenever_it_is_done(when, shelf, web, truth):
    url = f"{web.url}/plain.zarr"
    if when == "opening":
        response = open_store(url, subject="sub-01", roi=["V1"])["response"]
    else:
        vertices = np.flatnonzero(truth["roi_mask"].values[0, 0])
        response = open_store(url)["response"].isel(vertex=vertices).sel(subject=["sub-01"])
    web.counter.forget()
    response.compute()
    vertices = np.arange(110, 150)
    held = stored_bytes(shelf / "plain.zarr", [0], range(truth.sizes["image"]), vertices)
    assert web.counter.bytes("/response/") == held


def test_no_chunk_is_read_twice_in_any_order(web, truth):
    order = np.random.default_rng(2).permutation(truth.sizes["image"])
    shuffled = open_store(f"{web.url}/plain.zarr")["response"].isel(image=order)
    web.counter.forget()
    np.testing.assert_array_equal(shuffled.values, truth["response"].values[:, order])
    paths = [seen.path for seen in web.counter.matching("/response/")]
    assert len(paths) == len(set(paths)) == 2 * 15 * 9


def test_selections_keep_every_axis(shelf):
    opened = open_store(shelf / "plain.zarr", subject=1, roi="V2")
    assert opened["response"].dims == ("subject", "image", "vertex")
    assert opened.sizes["subject"] == opened.sizes["roi"] == 1
    assert opened["roi"].values.tolist() == ["V2"]


@pytest.mark.parametrize("selection", [{"subject": 7}, {"roi": "V9"}, {"time": (0, 1)}])
def test_what_is_not_there_is_named(selection, shelf):
    with pytest.raises(SelectionError):
        open_store(shelf / "plain.zarr", **selection)


def test_chunks_are_whole_stored_chunks_or_what_was_asked(shelf):
    assert open_store(shelf / "sharded.zarr")["response"].data.numblocks == (1, 1, 1)
    asked = open_store(shelf / "plain.zarr", chunks={"image": 70, "vertex": -1})["response"]
    assert asked.chunks[1:] == ((70, 70, 70, 70, 20), (900,))
    assert open_store(shelf / "plain.zarr", chunks=None)["response"].chunks is None


def test_one_subject_with_their_own_voxels_is_a_dataset(web, truth):
    url = f"{web.url}/ragged.zarr"
    opened = open_store(url, subject=1, roi="V1")
    assert isinstance(opened, xr.Dataset)
    np.testing.assert_array_equal(
        opened["response"].values, truth["response"].values[0][:, 110:150]
    )
    assert opened.indexes["image_id"][5] == "t:0005"
    assert web.counter.count("/sub-02/") == 0


def test_several_such_subjects_are_a_tree_and_what_they_share_is_read_once(web, truth):
    tree = open_store(f"{web.url}/ragged.zarr")
    assert isinstance(tree, xr.DataTree)
    assert list(tree.children) == ["sub-01", "sub-02"]
    assert web.counter.count("/image_id/") == web.counter.count("zarr.json") == 1
    np.testing.assert_array_equal(tree["sub-02/response"].values, truth["response"].values[1])
    with pytest.raises(SelectionError, match="sub-03"):
        open_store(f"{web.url}/ragged.zarr", subject=[1, 3])


def test_subjects_of_one_shape_are_not_mixed_up(truth, tmp_path):
    members = {f"sub-0{i + 1}": truth.isel(subject=i, drop=True) for i in range(2)}
    to_zarr(xr.DataTree.from_dict(members), tmp_path / "two.zarr", keep_bits=None)
    tree = open_store(tmp_path / "two.zarr")
    one, two = dask.compute(tree["sub-01/response"].data, tree["sub-02/response"].data)
    np.testing.assert_array_equal([one, two], truth["response"].values)


def test_tasks_have_the_same_names_each_time(shelf):
    first, second = (open_store(shelf / "plain.zarr")["response"].data for _ in range(2))
    assert first.name == second.name
    assert first.name != open_store(shelf / "sharded.zarr")["response"].data.name


def test_what_was_opened_is_written_by_xarray_without_ado(shelf, truth, tmp_path):
    """Encodings of the sharded source would not fit the blocks (spec 2.2)."""
    opened = open_store(shelf / "sharded.zarr", subject=1, roi="V1")
    opened.drop_indexes("image_id").to_zarr(tmp_path / "copy.zarr", zarr_format=3)
    again = open_store(tmp_path / "copy.zarr")
    np.testing.assert_array_equal(
        again["response"].values, truth["response"].values[:1, :, 110:150]
    )


def test_groups_open_by_name(shelf, truth):
    opened = open_store(shelf / "ragged.zarr", group="truth")
    np.testing.assert_array_equal(opened["noise_ceiling"].values, truth["noise_ceiling"].values)
    with pytest.raises(StoreError, match="did you mean 'truth'"):
        open_store(shelf / "ragged.zarr", group="thruth")


def test_an_unconsolidated_store_on_the_web_is_no_empty_dataset(web, shelf, truth):
    truth.drop_encoding().to_zarr(shelf / "loose.zarr", zarr_format=3, consolidated=False)
    # What is prevented: xarray sees nothing, and says nothing.
    with pytest.warns(RuntimeWarning, match="consolidated"):
        assert not xr.open_zarr(f"{web.url}/loose.zarr", zarr_format=3).variables
    with pytest.raises(StoreError, match=r"zarr\.consolidate_metadata\('loose\.zarr'\)"):
        open_store(f"{web.url}/loose.zarr")
    assert set(open_store(shelf / "loose.zarr").data_vars) == {"response", "noise_ceiling"}


def test_an_array_that_stale_metadata_hide_is_not_an_empty_dataset(web, shelf):
    zarr.create_group(shelf / "stale.zarr")
    zarr.consolidate_metadata(shelf / "stale.zarr")
    zarr.create_array(shelf / "stale.zarr", name="response", shape=(3,), dtype="f4")
    with pytest.raises(StoreError, match="consolidate it again"):
        open_store(f"{web.url}/stale.zarr")


def test_a_place_without_a_store_names_those_beside_it(shelf, web, tmp_path):
    with pytest.raises(StoreError, match=r"did you mean 'plain\.zarr'"):
        open_store(shelf / "plian.zarr")
    with pytest.raises(StoreError, match="no Zarr store"):
        open_store(f"{web.url}/nothing.zarr")
    (tmp_path / "zarr.json").write_text("<html>")
    with pytest.raises(CorruptStoreError, match="no metadata"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="one Zarr array"):
        open_store(shelf / "plain.zarr" / "response")
    (tmp_path / "recording.h5").write_bytes(b"something else")
    with pytest.raises(StoreError, match="is a file, not a Zarr store.*nedx import --help"):
        open_store(tmp_path / "recording.h5")


def test_an_unreachable_host_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.zarr"
    with pytest.raises(StoreError, match=f"{address}.*check the address"):
        open_store(address)


def test_an_unknown_protocol_is_named():
    with pytest.raises(StoreError, match="nosuch.*give gs://"):
        open_store("nosuch://bucket/a.zarr")


def test_the_store_of_a_newer_nedx_asks_for_an_upgrade(shelf, tmp_path):
    path = copied(shelf / "plain.zarr", tmp_path / "new.zarr")
    edit_attrs(path, nedx_schema_version="9.0")
    with pytest.raises(SchemaError, match="pip install --upgrade nedx"):
        open_store(path)


def test_an_unfinished_store_says_how_much_is_there_and_how_to_go_on(truth, tmp_path):
    writer = BlockWriter.create(truth, tmp_path / "half.zarr", "recipe", keep_bits=None)
    first = writer.blocks[0]
    with pytest.warns(IncompleteStoreWarning, match=rf"0 of {len(writer.blocks)} .*resume=True"):
        open_store(tmp_path / "half.zarr")
    writer.write(first, truth.isel(image=slice(first.start, first.stop)))
    with pytest.warns(IncompleteStoreWarning, match=f"1 of {len(writer.blocks)} "):
        opened = open_store(tmp_path / "half.zarr")
    np.testing.assert_array_equal(
        opened["response"][:, : first.stop].values, truth["response"][:, : first.stop].values
    )
    with pytest.raises(IncompleteStoreError, match=r"not written yet.*resume=True"):
        opened["response"].compute()


def test_stores_of_zarr_2_open_too(truth, tmp_path):
    truth.to_zarr(tmp_path / "v2.zarr", zarr_format=2)
    opened = open_store(tmp_path / "v2.zarr", subject=1)
    np.testing.assert_array_equal(opened["response"].values, truth["response"].values[:1])
