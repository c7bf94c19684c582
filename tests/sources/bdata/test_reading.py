"""BData against the matrix that was written, with h5py and scipy, never with nedx."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
from nedx.errors import CorruptStoreError, SchemaError, SelectionError, SourceError, StoreError
from nedx.sources.bdata.reading import open_bdata
from tests.laziness import computes_at_most
from tests.servers import HttpServer
from tests.sources.bdata.files import (
    IMAGES,
    TRIALS,
    VOXELS,
    bdata_parts,
    write_bdata,
    write_bdata_mat,
)

PARTS = bdata_parts()
MATRIX, FLAGS = PARTS[0], PARTS[-1]
RESPONSES = MATRIX[:, 3 : 3 + VOXELS]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_bdata(tmp_path_factory.mktemp("bdata") / "sub-02_NaturalImageTest.h5", PARTS)


def test_responses_are_those_of_the_file_and_nothing_is_read_before(place):
    with computes_at_most(0):
        ds = open_bdata(place, units="percent")
    assert ds["response"].dims == ("trial", "voxel")
    assert ds["response"].dtype == np.float32
    np.testing.assert_array_equal(ds["response"].values, RESPONSES.astype(np.float32))
    exact = open_bdata(place, dtype="float64")
    assert exact["response"].dtype == np.float64
    np.testing.assert_array_equal(exact["response"].values, RESPONSES)
    ds.ned.validate("responses")


def test_labels_of_samples(place):
    ds = open_bdata(place)
    assert ds.attrs["subject_ids"] == ["sub-02"]
    np.testing.assert_array_equal(ds["run"].values, MATRIX[:, 0])
    assert ds["run"].attrs["bdata_key"] == "Run"
    assert ds["run"].dtype.kind == "i"
    np.testing.assert_array_equal(ds["stimulus_name"].values, MATRIX[:, 2])
    names = [f"n0144{int(n)}_{int(n)}" for n in MATRIX[:, 2]]
    assert ds["stimulus_name_label"].values.tolist() == names
    assert ds["image_id"].values.tolist() == [f"NaturalImageTest:{name}" for name in names]
    assert ds["repetition"].values.tolist() == [names[:i].count(names[i]) for i in range(TRIALS)]
    assert ds["MotionParameter"].dims == ("trial", "MotionParameter_column")
    np.testing.assert_array_equal(ds["MotionParameter"].values, MATRIX[:, -4:-2])
    np.testing.assert_array_equal(ds["Label_house"].values, MATRIX[:, -1])


def test_any_label_can_say_which_image_was_shown(place):
    ds = open_bdata(place, stimulus="image_index", image_set="mine")
    assert ds["image_id"].values.tolist() == [f"mine:{int(n)}" for n in MATRIX[:, 1]]
    with pytest.raises(SelectionError, match="did you mean 'image_index'"):
        open_bdata(place, stimulus="image_indx")


@pytest.mark.parametrize(
    ("name", "subject", "image_set"),
    [
        ("sub-01_NaturalImageTest.h5", ["sub-01"], "NaturalImageTest"),
        ("S3_test.h5", ["sub-03"], "test"),
        ("Subject2.h5", ["sub-02"], "bdata"),
        ("pooled_responses.h5", None, "pooled_responses"),
    ],
)
def test_names_of_files_say_whose_and_which_images(tmp_path, name, subject, image_set):
    ds = open_bdata(write_bdata(tmp_path / name))
    assert ds.attrs.get("subject_ids") == subject
    assert ds["image_id"].values[0] == f"{image_set}:n01441_1"
    named = open_bdata(tmp_path / name, subject=5, image_set="mine")
    assert named.attrs["subject_ids"] == ["sub-05"]
    assert named["image_id"].values[0] == "mine:n01441_1"


def test_labels_of_voxels(place):
    ds = open_bdata(place)
    assert ds["roi"].values.tolist() == list(FLAGS)
    np.testing.assert_array_equal(ds["roi_mask"].values, np.stack(list(FLAGS.values())))
    number = np.arange(VOXELS)
    np.testing.assert_array_equal(ds["x"].values, (-1.5 + 3 * number).astype(np.float32))
    assert ds["x"].attrs == {"bdata_key": "voxel_x", "units": "mm"}
    np.testing.assert_array_equal(ds["k"].values, number % 7)
    assert ds["k"].dtype == np.int32
    np.testing.assert_array_equal(ds["nc_singletrial"].values, number / 7)
    assert ds.attrs["bdata_descriptions"]["voxel_x"] == "x of a voxel"
    assert list(ds.attrs["bdata_descriptions"]) == PARTS[1]


def test_call_stacks_stay_behind(place, tmp_path):
    ds = open_bdata(place, units="percent")
    assert "SECRET" not in str(ds.to_dict(data="list"))
    ds.ned.to_zarr(tmp_path / "kept.zarr")
    kept = nedx.open(str(tmp_path / "kept.zarr"))
    np.testing.assert_allclose(kept["response"].values, RESPONSES, rtol=6e-4)
    assert "secret" not in str(kept.to_dict(data="list")).lower()


def test_it_is_imported_as_any_source(place, tmp_path):
    nedx.import_source("bdata", place, tmp_path / "out.zarr", units="percent")
    stored = nedx.open(str(tmp_path / "out.zarr"), roi="ROI_V1")
    columns = np.flatnonzero(FLAGS["ROI_V1"])
    np.testing.assert_allclose(stored["response"].values, RESPONSES[:, columns], rtol=6e-4)
    assert stored["stimulus_name_label"].values[0] == "n01441_1"
    np.testing.assert_array_equal(stored["MotionParameter"].values, MATRIX[:, -4:-2])


def test_units_that_nobody_said_are_not_guessed(place, tmp_path):
    ds = open_bdata(place)
    assert "units" not in ds["response"].attrs
    with pytest.raises(SchemaError, match="'response' has units None: for fmri use 'percent'"):
        ds.ned.validate()
    with pytest.raises(SchemaError, match="normalization_scope"):
        open_bdata(place, units="1", normalization="zscore")
    z = open_bdata(place, units="1", normalization="zscore", normalization_scope="run")
    z.ned.validate("responses")


def test_responses_without_units_are_averaged_and_stay_without(place):
    ds = open_bdata(place)
    mean = ds.ned.average_repetitions()
    names = ds["image_id"].values
    expected = [RESPONSES[names == name].mean(0) for name in mean["image_id"].values]
    np.testing.assert_allclose(mean["response"].values, expected, rtol=1e-6, atol=1e-6)
    assert mean.sel(image_id=names[3]).sizes == {"voxel": VOXELS, "roi": len(FLAGS)}
    first = ds.ned.stack_repetitions(2)
    assert first["response"].shape == (IMAGES, 2, VOXELS)
    for some in (ds, mean, first):
        assert "units" not in some["response"].attrs
        with pytest.raises(SchemaError, match="units None"):
            some.ned.validate("responses")
    with pytest.raises(SchemaError, match="units 'apples'"):
        ds.assign(response=ds["response"].assign_attrs(units="apples")).ned.average_repetitions()


@pytest.mark.parametrize("kind", ["legacy", "matlab"])
def test_older_files_hold_the_same(tmp_path, place, kind):
    if kind == "legacy":
        old = write_bdata(tmp_path / "sub-02_NaturalImageTest.h5", PARTS, legacy=True)
    else:
        old = write_bdata_mat(tmp_path / "sub-02_NaturalImageTest.mat", PARTS)
    ds, new = open_bdata(old), open_bdata(place, stimulus="image_index")
    np.testing.assert_array_equal(ds["response"].values, RESPONSES.astype(np.float32))
    assert ds["image_id"].values.tolist() == [f"NaturalImageTest:{int(n)}" for n in MATRIX[:, 2]]
    for name in ("roi", "roi_mask", "x", "i", "run", "image_index"):
        np.testing.assert_array_equal(ds[name].values, new[name].values)
    assert ds.attrs["bdata_descriptions"] == new.attrs["bdata_descriptions"]
    part = ds.isel(trial=[7, 2, 2], voxel=slice(None, None, -3))["response"].values
    np.testing.assert_array_equal(part, RESPONSES[[7, 2, 2]][:, ::-3].astype(np.float32))


@settings(max_examples=30)
@given(st.data())
def test_any_selection_reads_what_it_names(place, data):
    rows = data.draw(st.lists(st.integers(0, TRIALS - 1), max_size=6))
    columns = data.draw(st.lists(st.integers(0, VOXELS - 1), max_size=6))
    got = open_bdata(place)["response"].isel(trial=rows, voxel=columns).values
    np.testing.assert_array_equal(got, RESPONSES[np.ix_(rows, columns)].astype(np.float32))


def test_blocks_of_rows_are_chunks_and_columns_far_apart_are_skipped(tmp_path, monkeypatch):
    from nedx.sources.bdata import container

    parts = bdata_parts(voxels=3000)
    path = write_bdata(tmp_path / "wide.h5", parts)
    monkeypatch.setattr(container, "TARGET_BYTES", 4 * 8 * 3000)
    response = open_bdata(path, dtype="float64")["response"]
    assert response.chunksizes["trial"] == (4, 4, 4, 3)
    far = response.isel(voxel=[2999, 0, 1])
    # Three columns in two runs: all rows fit in one block.
    assert far.chunksizes["trial"] == (TRIALS,)
    np.testing.assert_array_equal(far.values, parts[0][:, [3002, 3, 4]])


def test_selecting_over_http_does_not_read_all_rows(tmp_path):
    parts = bdata_parts(voxels=20_000, trials=60)
    write_bdata(tmp_path / "sub-01_big.h5", parts)
    server = HttpServer(tmp_path)
    try:
        ds = open_bdata(f"{server.url}/sub-01_big.h5", dtype="float64")
        opened = server.counter.bytes()
        got = ds["response"].isel(trial=[3], voxel=slice(10, 20)).values
    finally:
        server.close()
    np.testing.assert_array_equal(got, parts[0][[3], 13:23])
    # h5py reads through a buffer of 1 MiB: here and there in the file, not all of its rows.
    assert server.counter.bytes() - opened < parts[0].nbytes / 2


def test_numbers_without_a_name_and_missing_ones(tmp_path):
    matrix, *rest = bdata_parts()
    matrix[3, 2] = np.nan
    path = write_bdata(tmp_path / "a.h5", (matrix, *rest))
    ds = open_bdata(path)
    assert ds["stimulus_name_label"].values[3] == "n/a"
    assert ds["image_id"].values[3] == "a:n/a"
    assert ds["stimulus_name"].dtype == np.float64
    matrix[4, 2] = 77
    with pytest.raises(SourceError, match="no name for 1 of its numbers, the first is 77"):
        open_bdata(write_bdata(tmp_path / "b.h5", (matrix, *rest)))


def test_images_are_called_alike_where_a_number_is_missing(tmp_path):
    """A missing number makes floats of all, which must not rename the other images."""
    matrix, *rest = bdata_parts()
    matrix[3, 1] = np.nan
    matrix[4, 1] = 1518878.005958
    path = write_bdata(tmp_path / "sub-01_a.h5", (matrix, *rest))
    ids = open_bdata(path, stimulus="image_index")["image_id"].values.tolist()
    assert ids[:6] == ["a:2", "a:2", "a:3", "a:n/a", "a:1518878.005958", "a:1"]


def test_names_of_value_maps_may_be_whole_numbers(tmp_path):
    matrix, keys, descriptions, values, _, flags = bdata_parts()
    names = {n: f"name{n}" for n in range(IMAGES)}
    parts = (matrix, keys, descriptions, values, {"stimulus_name": names}, flags)
    ds = open_bdata(write_bdata(tmp_path / "a.h5", parts))
    assert ds["stimulus_name_label"].values[1] == "name1"


def test_what_is_no_bdata_says_so(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["betas"] = np.zeros(3)
    with pytest.raises(SourceError, match="is no BData.*holds betas"):
        open_bdata(tmp_path / "other.h5")
    with pytest.raises(StoreError, match="there is no file"):
        open_bdata(tmp_path / "absent.h5")
    with pytest.raises(SourceError, match=r"is a folder, expected one file.*there are: other.h5"):
        nedx.import_source("bdata", tmp_path, tmp_path / "out.zarr")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(CorruptStoreError, match="neither HDF5 nor a MATLAB file"):
        open_bdata(tmp_path / "text.h5")
    whole = write_bdata(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptStoreError, match="cut short"):
        open_bdata(tmp_path / "cut.h5")


def test_parts_that_do_not_fit_together(tmp_path):
    matrix, keys, descriptions, values, vmaps, flags = bdata_parts()
    parts = (matrix[:, :-1], keys, descriptions, values, vmaps, flags)
    with pytest.raises(SourceError, match="does not fit together"):
        open_bdata(write_bdata(tmp_path / "a.h5", parts))


def test_files_that_say_too_little_or_too_much(tmp_path):
    matrix, keys, descriptions, values, vmaps, flags = bdata_parts()
    rest = (descriptions, values, vmaps, flags)
    with pytest.raises(SourceError, match="has no samples"):
        open_bdata(write_bdata(tmp_path / "none.h5", (matrix[:0], keys, *rest)))
    twice = ["ROI_V1" if key == "ROI_V2" else key for key in keys]
    with pytest.raises(SourceError, match="has the key 'ROI_V1' more than once"):
        open_bdata(write_bdata(tmp_path / "twice.h5", (matrix, twice, *rest)))
    odd = (descriptions, values, {"stimulus_name": {"first": "a"}}, flags)
    with pytest.raises(SourceError, match="value map of 'stimulus_name'.*'first', no number"):
        open_bdata(write_bdata(tmp_path / "odd.h5", (matrix, keys, *odd)))


def test_a_file_that_changed_since_it_was_opened_is_not_read_as_the_old_one(tmp_path):
    path = write_bdata(tmp_path / "sub-01_a.h5")
    ds = open_bdata(path)
    # Now columns lie elsewhere: responses first.
    ds.ned.to_bdata(path, overwrite=True)
    with pytest.raises(StoreError, match="sub-01_a.h5 has changed since it was opened"):
        ds["response"].compute()
    np.testing.assert_array_equal(open_bdata(path)["response"], RESPONSES.astype(np.float32))


def test_columns_of_responses_and_labels_of_images_must_be_known(tmp_path):
    matrix, keys, descriptions, values, vmaps, flags = bdata_parts()
    named = ["Betas" if key == "VoxelData" else key for key in keys]
    path = write_bdata(tmp_path / "a.h5", (matrix, named, descriptions, values, vmaps, flags))
    with pytest.raises(SourceError, match="give block=, for example one of: Betas"):
        open_bdata(path)
    with pytest.raises(SelectionError, match="did you mean 'Betas'"):
        open_bdata(path, block="Beta")
    ds = open_bdata(path, block="Betas")
    assert ds["response"].dims == ("trial", "unit")
    np.testing.assert_array_equal(ds["response"].values, RESPONSES.astype(np.float32))
    assert ds["roi"].values.tolist() == list(FLAGS)
    named = [f"my_{k}" if k in ("image_index", "stimulus_name") else k for k in keys]
    path = write_bdata(tmp_path / "b.h5", (matrix, named, descriptions, values, {}, flags))
    with pytest.raises(SourceError, match="give stimulus=, one of: Run, my_image_index"):
        open_bdata(path)


def test_two_labels_never_get_one_name(tmp_path):
    matrix, keys, descriptions, values, vmaps, flags = bdata_parts()
    # A label of samples is called as an index of voxels is, another as a dimension.
    named = {"image_index": "x", "Label_face": "trial", "Label_house": "run"}
    keys = [named.get(key, key) for key in keys]
    ds = open_bdata(
        write_bdata(tmp_path / "a.h5", (matrix, keys, descriptions, values, vmaps, flags))
    )
    assert ds["x"].dims == ("voxel",)
    np.testing.assert_array_equal(ds["x_number"].values, matrix[:, 1])
    np.testing.assert_array_equal(ds["trial_number"].values, matrix[:, -2])
    np.testing.assert_array_equal(ds["run"].values, matrix[:, 0])
    np.testing.assert_array_equal(ds["run_number"].values, matrix[:, -1])
    assert "trial" not in ds.coords


def test_surfaces_have_hemispheres(tmp_path):
    matrix, keys, descriptions, values, vmaps, flags = bdata_parts()
    named = {"VoxelData": "VertexData", "ROI_LH_VC": "VertexLeft", "ROI_RH_VC": "VertexRight"}
    keys = [named.get(key, key) for key in keys]
    for key, left in (("VertexLeft", True), ("VertexRight", False)):
        values[keys.index(key), 3 : 3 + VOXELS] = (np.arange(VOXELS) < 7) == left
    ds = open_bdata(
        write_bdata(tmp_path / "a.h5", (matrix, keys, descriptions, values, vmaps, flags)),
        units="percent",
    )
    assert ds["response"].dims == ("trial", "vertex")
    assert ds["hemisphere"].values.tolist() == ["L"] * 7 + ["R"] * (VOXELS - 7)
    assert not {"VertexLeft", "VertexRight"} & set(ds["roi"].values)
    assert ds.ned.select("VertexLeft - ROI_V1")["vertex"].values.tolist() == [4, 5, 6]
