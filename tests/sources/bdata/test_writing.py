"""BData that nedx writes: by the published layout, as h5py reads it, and read back as it was."""

from __future__ import annotations

import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr

from nedx.errors import StoreError, StoreExistsError
from nedx.schema import parse
from nedx.sources.bdata.reading import open_bdata
from nedx.sources.bdata.writing import to_bdata
from tests.sources.bdata.files import VOXELS, bdata_parts, write_bdata

PARTS = bdata_parts()


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    place = write_bdata(tmp_path_factory.mktemp("bdata") / "sub-02_Test.h5", PARTS)
    return open_bdata(place, units="1", normalization="zscore", normalization_scope="run")


def bare(ds):
    return ds.assign_attrs(bdata_descriptions=None)


def test_what_was_read_is_written_and_read_again(ds, tmp_path):
    place = ds.ned.to_bdata(tmp_path / "other_name.h5")
    assert place.url == str(tmp_path / "other_name.h5")
    again = open_bdata(tmp_path / "other_name.h5")
    xr.testing.assert_identical(bare(again.load()), bare(ds.compute()))
    known = ds.attrs["bdata_descriptions"].items()
    assert known <= again.attrs["bdata_descriptions"].items()


def test_the_layout_is_the_published_one(ds, tmp_path):
    to_bdata(ds, tmp_path / "a.h5")
    matrix, keys, descriptions, values, vmaps, flags = PARTS
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"dataset", "metadata", "vmap", "header"}
        assert set(file["header"]) == {"nedx"}
        held = file["dataset"]
        assert held.dtype == np.float64
        assert held.chunks is None
        found = [key.decode() for key in file["metadata/key"][()]]
        assert h5py.check_string_dtype(file["metadata/key"].dtype).length is None
        rows = dict(zip(found, file["metadata/value"][()], strict=True))
        texts = dict(zip(found, file["metadata/description"][()], strict=True))
        # As bdpy selects: the columns for which a row is 1.
        for key in ("VoxelData", "Run", "image_index", "stimulus_name", "MotionParameter", "Label"):
            original = matrix[:, values[keys.index(key)] == 1]
            if key == "VoxelData":
                original = original.astype(np.float32)
            np.testing.assert_array_equal(held[:, rows[key] == 1], original)
            assert np.isnan(rows[key][rows[key] != 1]).all()
        block = rows["VoxelData"] == 1
        for key in (*flags, "voxel_x", "voxel_k", "nc_singletrial"):
            expected = values[keys.index(key)]
            np.testing.assert_array_equal(rows[key][block], expected[~np.isnan(expected)])
            assert np.isnan(rows[key][~block]).all()
            assert texts[key].decode() == descriptions[keys.index(key)]
        names = {float(n): text[()].decode() for n, text in file["vmap/stimulus_name"].items()}
        assert names == vmaps["stimulus_name"]


def test_a_selection_is_written_as_what_it_is(ds, tmp_path):
    part = ds.ned.select("ROI_V2 - ROI_V1").isel(trial=slice(3, 12, 2))
    to_bdata(part, tmp_path / "a.h5")
    again = open_bdata(tmp_path / "a.h5")
    assert again["voxel"].values.tolist() == [4, 5, 6, 7]
    xr.testing.assert_identical(bare(again.load()), bare(part.compute()))


def test_names_without_their_numbers_are_kept(ds, tmp_path):
    to_bdata(ds.drop_vars("stimulus_name"), tmp_path / "a.h5")
    again = open_bdata(tmp_path / "a.h5")
    assert "stimulus_name" not in again.coords
    np.testing.assert_array_equal(again["stimulus_name_label"], ds["stimulus_name_label"])


def test_responses_of_other_sources(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 5)).astype(np.float32)
    ds = parse(
        xr.Dataset(
            {
                "response": (
                    ("image", "vertex"),
                    da.from_array(values, chunks=(2, 5)),
                    {"units": "percent"},
                )
            },
            {
                "image_id": ("image", np.array([f"nsd:{n:05d}" for n in range(6)], dtype=object)),
                "category": ("image", np.array(list("abcabc"), dtype=object)),
                "hemisphere": ("vertex", np.array(list("LLLRR"), dtype=object)),
                "vertex": ("vertex", np.array([0, 3, 4, 9, 12], np.int32)),
                "cortex_fraction": ("vertex", np.array([0.0, 1, 1, 0, 1])),
                "roi": np.array(["V1v", "empty"], dtype=object),
                "roi_mask": (("roi", "vertex"), np.array([[1, 1, 0, 0, 1], [0] * 5], bool)),
            },
            {"modality": "fmri", "source": "measured", "subject_ids": ["sub-07"]},
        )
    )
    to_bdata(ds, tmp_path / "a.h5")
    again = open_bdata(tmp_path / "a.h5")
    again.ned.validate("responses")
    assert again["image_id"].identical(ds["image_id"])
    assert "category_label" not in again.coords
    for name in ("response", "category", "hemisphere", "vertex", "cortex_fraction", "roi_mask"):
        np.testing.assert_array_equal(again[name].values, ds[name].values)
        assert again[name].dims == ds[name].dims
    assert again["roi"].values.tolist() == ["V1v", "empty"]
    assert again.attrs["subject_ids"] == ["sub-07"]
    assert again["response"].attrs["units"] == "percent"


def test_it_is_written_block_by_block(ds, tmp_path, monkeypatch):
    monkeypatch.setattr("nedx.sources.bdata.writing.TARGET_BYTES", 4 * 8 * VOXELS)
    seen = []

    def noted(block):
        seen.append(len(block))
        return block

    chunked = ds["response"].chunk(trial=4).data.map_blocks(noted, meta=np.empty((0, 0), "f4"))
    to_bdata(ds.assign(response=ds["response"].copy(data=chunked)), tmp_path / "a.h5")
    assert seen == [4, 4, 4, 3]
    np.testing.assert_array_equal(
        open_bdata(tmp_path / "a.h5")["response"].values, ds["response"].values
    )


def test_files_appear_whole_or_not_at_all(ds, tmp_path):
    to_bdata(ds, tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        to_bdata(ds, tmp_path / "a.h5")

    def broken(block):
        raise RuntimeError("broken")

    failing = ds["response"].data.map_blocks(broken, dtype=np.float32)
    bad = ds.assign(response=ds["response"].copy(data=failing))
    with pytest.raises(RuntimeError, match="broken"):
        to_bdata(bad, tmp_path / "a.h5", overwrite=True)
    assert (tmp_path / "a.h5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    # A file may be replaced by what was read from it.
    own = open_bdata(tmp_path / "a.h5").isel(trial=slice(2))
    to_bdata(own, tmp_path / "a.h5", overwrite=True)
    assert open_bdata(tmp_path / "a.h5").sizes["trial"] == 2


def test_what_has_no_place_is_named(ds, tmp_path):
    odd = ds.assign(response_predicted=ds["response"]).assign_coords(
        region=("voxel", np.full(VOXELS, "V4", dtype=object)),
        roi_group=("roi", np.full(ds.sizes["roi"], "a", dtype=object)),
    )
    message = r"cannot hold 'response_predicted', 'region', 'roi_group': .*drop_vars\(\["
    with pytest.raises(StoreError, match=message):
        to_bdata(odd, tmp_path / "a.h5")
    with pytest.raises(StoreError, match="average or select until two dimensions"):
        to_bdata(ds.expand_dims(time=[0.0]), tmp_path / "a.h5")
    with pytest.raises(StoreError, match="no variable 'response'"):
        to_bdata(ds.drop_vars("response"), tmp_path / "a.h5")
    with pytest.raises(StoreError, match="written to this machine"):
        to_bdata(ds, "s3://bucket/a.h5")
    assert not list(tmp_path.iterdir())
