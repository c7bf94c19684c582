"""NSD in its published layout, against what was written and plain numpy."""

from __future__ import annotations

import shutil

import h5py
import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import nedx
from nedx.cli import main
from nedx.errors import CorruptStoreError, SelectionError, SourceError, StoreError
from nedx.sources.importing import import_source
from nedx.sources.nsd import open_nsd
from nedx.store.location import Location
from tests.laziness import computes_at_most
from tests.servers import S3Server
from tests.sources import nsd_fixture as made


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("nsd")
    ordering, images = made.write_design(root)
    return {
        "root": root,
        "ordering": ordering,
        "images": images,
        "volumes": made.write_volumes(root),
        "surfaces": made.write_surfaces(root, "subj02"),
        "others": made.write_surfaces(root, "subj03"),
    }


@pytest.fixture
def copy(published, tmp_path):
    """Return a root of sub-01 that a test may damage."""
    root = tmp_path / "nsd"
    shutil.copytree(published["root"], root, ignore=shutil.ignore_patterns("subj0[23]"))
    return root


def betas_folder(root, space="func1pt8mm", subject="subj01"):
    return root / f"nsddata_betas/ppdata/{subject}/{space}/{made.BETAS}"


def masked(volumes):
    """Return (session, trial, voxel) of the general mask, in C order, percent."""
    return np.moveaxis(volumes[:, made.general_mask()], 1, 2).astype(np.float64) / 300


def zscored(values):
    deviation = values.std(1, keepdims=True)
    return (values - values.mean(1, keepdims=True)) / np.where(deviation == 0, 1, deviation)


def test_opening_reads_labels_only(published):
    with computes_at_most(0):
        ds = open_nsd(published["root"], subject=1, sessions=[1, 2])
    assert ds.response.dims == ("trial", "voxel")
    assert ds.response.dtype == np.float32
    nedx.validate(ds)


def test_values_are_percent_as_published(published):
    ds = open_nsd(published["root"], subject=1, sessions=[1, 2], normalize="none")
    expected = masked(published["volumes"]).reshape(2 * made.TRIALS, -1)
    np.testing.assert_allclose(ds.response.values, expected, rtol=1e-6)
    assert ds.response.attrs["units"] == "percent"


def test_zscores_are_within_session(published):
    ds = open_nsd(published["root"], subject=1, sessions=[2, 1])
    expected = zscored(masked(published["volumes"]))[::-1].reshape(2 * made.TRIALS, -1)
    np.testing.assert_allclose(ds.response.values, expected, atol=2e-5)
    assert ds.response.attrs["normalization_scope"] == "session"
    assert [step["step"] for step in ds.attrs["preprocessing"]] == ["betas", "zscore"]


@pytest.fixture(scope="module")
def whole(published):
    opened = open_nsd(published["root"], subject=1, sessions=[1, 2])
    expected = zscored(masked(published["volumes"])).reshape(2 * made.TRIALS, -1)
    return {"opened": opened.response, "expected": expected}


@settings(max_examples=25)
@given(
    trials=st.lists(st.integers(0, 2 * made.TRIALS - 1), min_size=1, max_size=20),
    voxels=st.lists(st.integers(0, 47), min_size=1, max_size=8, unique=True),
)
def test_any_selection_is_the_selection_of_all(whole, trials, voxels):
    found = whole["opened"].isel(trial=trials, voxel=voxels).values
    np.testing.assert_allclose(found, whole["expected"][np.ix_(trials, voxels)], atol=2e-5)


def test_trials_name_their_images(published):
    ds = open_nsd(published["root"], subject=1, sessions=[2])
    trials = np.arange(made.TRIALS, 2 * made.TRIALS)
    columns = published["ordering"] - 1
    numbers = published["images"][0, columns] - 1
    np.testing.assert_array_equal(ds.nsd_id, numbers[trials])
    assert ds.image_id.values[0] == f"nsd:{numbers[trials[0]]:05d}"
    before = [int((numbers[:trial] == numbers[trial]).sum()) for trial in trials]
    np.testing.assert_array_equal(ds.repetition, before)
    assert set(ds.session.values.tolist()) == {2}
    np.testing.assert_array_equal(ds.is_shared, columns[trials] < made.SHARED)


def test_splits_are_as_published(published):
    ds = open_nsd(published["root"], subject=1, sessions=[1, 2])
    columns = published["ordering"] - 1
    early = columns[: 30 * made.TRIALS]
    trials = columns[: 2 * made.TRIALS]
    expected = [
        "train" if column >= made.SHARED else ("test" if (early == column).sum() == 3 else "val")
        for column in trials
    ]
    assert ds.partition.values.tolist() == expected
    assert set(expected) == {"train", "val", "test"}


def test_voxels_are_where_the_mask_is(published):
    ds = open_nsd(published["root"], subject=1, sessions=[1])
    places = np.argwhere(made.general_mask())
    np.testing.assert_array_equal(np.stack([ds.i, ds.j, ds.k], 1), places)
    positions = nibabel.affines.apply_affine(made.AFFINE, places)
    np.testing.assert_allclose(np.stack([ds.x, ds.y, ds.z], 1), positions, rtol=1e-5)
    np.testing.assert_array_equal(ds.voxel, np.flatnonzero(made.general_mask()))
    ncsnr = nibabel.load(betas_folder(published["root"]) / "ncsnr.nii.gz").get_fdata()
    np.testing.assert_allclose(ds.ncsnr, ncsnr[made.general_mask()], rtol=1e-6)


def test_rois_by_name(published):
    ds = open_nsd(published["root"], subject=1, sessions=[1])
    labels = made.visual_labels()[made.general_mask()]
    for name, wanted in {"V1v": labels == 1, "V1": labels < 3, "hV4": labels == 7}.items():
        expected = wanted & (labels > 0)
        np.testing.assert_array_equal(ds.roi_mask.sel(roi=name), expected)
    assert str(ds.roi_group.sel(roi="V1").values) == "prf-visualrois"
    assert ds.ned.roi("V1v").sizes["voxel"] == int((labels == 1).sum())
    assert ds.atlas_streams.attrs["flag_meanings"].split()[4] == "ventral"
    assert set(ds.atlas_streams.values.tolist()) == {5}


def test_nifti_betas_are_the_same(copy, published):
    folder = betas_folder(copy)
    for number, session in enumerate(published["volumes"], start=1):
        (folder / f"betas_session{number:02d}.hdf5").unlink()
        made.save(session, folder / f"betas_session{number:02d}.nii.gz")
    ds = open_nsd(copy, subject=1, sessions=[1, 2])
    expected = zscored(masked(published["volumes"])).reshape(2 * made.TRIALS, -1)
    np.testing.assert_allclose(ds.response.values, expected, atol=2e-5)


def test_nifti_of_another_scale_is_refused(copy, published):
    path = betas_folder(copy) / "betas_session01.nii.gz"
    path.with_name("betas_session01.hdf5").unlink()
    made.save(published["volumes"][0].astype(np.float32), path)
    with pytest.raises(SourceError, match="holds float32 .* expected plain int16"):
        open_nsd(copy, subject=1, sessions=[1])


def test_nothing_is_selected(published):
    response = open_nsd(published["root"], subject=1, sessions=[1]).response
    assert response.isel(trial=[]).values.shape == (0, 48)
    assert response.isel(voxel=[]).values.shape == (made.TRIALS, 0)


def test_fsaverage(published):
    with computes_at_most(0):
        ds = open_nsd(published["root"], subject=2, space="fsaverage", sessions=[1])
    nedx.validate(ds)
    expected = zscored(published["surfaces"].reshape(1, 2 * made.HALF, -1).transpose(0, 2, 1))[0]
    np.testing.assert_allclose(ds.response.values, expected, atol=2e-5)
    assert ds.hemisphere.values.tolist() == ["L"] * made.HALF + ["R"] * made.HALF
    some = ds.response.isel(trial=[5, 3], vertex=[made.HALF + 1, 4])
    np.testing.assert_allclose(some, expected[[5, 3]][:, [made.HALF + 1, 4]], atol=2e-5)
    few = open_nsd(published["root"], subject=2, space="fsaverage", sessions=[1], mask="nsdgeneral")
    assert few.vertex_index.values.tolist() == [*range(10, 30)] * 2
    np.testing.assert_allclose(few.response, expected[:, few.vertex], atol=2e-5)


def test_import_writes_the_same_and_goes_on(published, tmp_path):
    place = tmp_path / "nsd.zarr"
    import_source("nsd", published["root"], place, subject=1, sessions=[1, 2])
    stored = nedx.open(str(place))
    expected = zscored(masked(published["volumes"])).reshape(2 * made.TRIALS, -1)
    np.testing.assert_allclose(stored.response.values, expected, atol=1e-5, rtol=6e-4)
    assert nedx.verify(str(place)).ok
    nedx.validate(stored)
    # A task reads a session, so that no chunk may lie in two.
    assert made.TRIALS % zarr.open(place)["response"].chunks[0] == 0
    import_source("nsd", published["root"], place, subject=1, sessions=[1, 2])


def test_several_subjects_are_a_tree(published, tmp_path, capsys):
    place = tmp_path / "tree.zarr"
    words = ["import", "nsd", str(published["root"]), str(place), "--subject", "2,3", "--quiet"]
    assert main([*words, "--space", "fsaverage", "--sessions", "1", "--mask", "nsdgeneral"]) == 0
    assert "written to" in capsys.readouterr().err
    tree = nedx.open(str(place))
    for name, values in (("sub-02", published["surfaces"]), ("sub-03", published["others"])):
        child = tree[name].to_dataset()
        every = zscored(values.reshape(1, 2 * made.HALF, -1).transpose(0, 2, 1))[0]
        np.testing.assert_allclose(child.response, every[:, child.vertex], atol=1e-5, rtol=6e-4)
        assert (
            child.nsd_id.values[0]
            == published["images"][int(name[-1]) - 1, published["ordering"][0] - 1] - 1
        )


def raises(root, tmp_path, kind, words, **arguments):
    place = tmp_path / "refused.zarr"
    arguments = {"subject": 1, "sessions": [1, 2], **arguments}
    with pytest.raises(kind, match=words):
        import_source("nsd", root, place, **arguments)
    assert not place.exists()


def test_what_is_not_there(copy, tmp_path):
    raises(copy, tmp_path, SourceError, "session 3 of subject 1 are missing", sessions=[1, 3])
    raises(copy, tmp_path, SourceError, "session.* are missing", sessions=None)
    raises(copy, tmp_path, SelectionError, "sessions 1 to 40", sessions=[0])
    raises(copy, tmp_path, SelectionError, "no subject 'sub-09' in NSD", subject=9)
    raises(copy, tmp_path, SelectionError, "no mask", mask="nsdgenral")
    raises(copy, tmp_path, SelectionError, "no space", space="func2mm")
    (copy / "nsddata/experiments/nsd/nsd_expdesign.mat").unlink()
    raises(copy, tmp_path, StoreError, "no file .*nsd_expdesign.mat")


def test_a_truncated_file(copy, tmp_path):
    path = betas_folder(copy) / "betas_session02.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    raises(copy, tmp_path, CorruptStoreError, "session02.hdf5 is cut short")
    path.unlink()
    packed = path.with_name("betas_session02.nii.gz")
    made.save(np.zeros((*made.SHAPE, made.TRIALS), np.int16), packed)
    packed.write_bytes(packed.read_bytes()[:500])
    raises(copy, tmp_path, CorruptStoreError, "session02.nii.gz is cut short")


def test_trials_that_differ_from_the_design(copy, tmp_path):
    path = betas_folder(copy) / "betas_session02.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=np.zeros((740, *made.SHAPE[::-1]), np.int16))
    raises(copy, tmp_path, SourceError, "session 2 has 740 trials .* the design 750")


def test_a_design_that_counts_from_zero(copy, tmp_path, published):
    from scipy.io import savemat

    savemat(
        copy / "nsddata/experiments/nsd/nsd_expdesign.mat",
        {
            "masterordering": published["ordering"][None] - 1,
            "subjectim": published["images"],
            "sharedix": published["images"][:1, : made.SHARED],
        },
    )
    raises(copy, tmp_path, SourceError, "does not count .* from 1")


def test_a_mask_of_another_space(copy, tmp_path):
    path = copy / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    made.save(np.ones(made.SHAPE, np.int16), path, made.AFFINE + np.eye(4) * 0.1)
    raises(copy, tmp_path, SourceError, "the affine of")
    made.save(np.ones((6, 7, 4), np.int16), path)
    raises(copy, tmp_path, SourceError, "has the shape")


def test_values_that_are_not_finite(published, tmp_path):
    root = tmp_path / "nsd"
    shutil.copytree(published["root"], root, ignore=shutil.ignore_patterns("subj01"))
    values = published["surfaces"].copy()
    values[0, 7, 3] = np.nan
    folder = betas_folder(root, "fsaverage", "subj02")
    made.save(values[0][:, None, None], folder / "lh.betas_session01.mgh")
    wanted = {"subject": 2, "space": "fsaverage", "sessions": [1]}
    raises(root, tmp_path, SourceError, r"1 values are not finite.*voxel \(7, 0, 0\)", **wanted)
    ds = open_nsd(root, **wanted, missing="zero")
    found = ds.response.isel(vertex=[7]).values[:, 0]
    rest = np.delete(values[0, 7], 3).astype(np.float64)
    assert found[3] == 0
    np.testing.assert_allclose(np.delete(found, 3), (rest - rest.mean()) / rest.std(), atol=2e-5)


def test_an_import_that_was_stopped_goes_on(published, tmp_path):
    wanted = {"subject": 1, "sessions": [1, 2]}
    whole, stopped = tmp_path / "whole.zarr", tmp_path / "stopped.zarr"
    import_source("nsd", published["root"], whole, **wanted)

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_source("nsd", published["root"], stopped, **wanted, progress=stop)
    first = {path: path.stat().st_mtime_ns for path in stopped.glob("response/c/**/*")}
    assert any(path.is_file() for path in first)
    import_source("nsd", published["root"], stopped, **wanted)
    assert all(path.stat().st_mtime_ns == at for path, at in first.items() if path.is_file())
    chunks = [path for path in whole.glob("response/c/**/*") if path.is_file()]
    for path in chunks:
        assert path.read_bytes() == (stopped / path.relative_to(whole)).read_bytes()
    assert nedx.verify(str(stopped)).ok


def test_photographs_join_by_id(published, tmp_path):
    path = tmp_path / "nsd_stimuli.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("imgBrick", (73_000, 2, 2, 3), np.uint8, chunks=(1, 2, 2, 3))
        ds = open_nsd(published["root"], subject=1, sessions=[1])
        number = int(ds.nsd_id[17])
        file["imgBrick"][number] = 200
    images = nedx.open_images(path, image_set="nsd")
    shown = images.sel(image_id=ds.image_id.values[17]).pixels.values
    assert (shown == 200).all()


def test_from_a_bucket(published):
    server = S3Server()
    try:
        url = server.fill("natural-scenes", published["root"])
        there = Location.of(url, storage_options=server.options)
        far = open_nsd(there, subject=1, sessions=[2]).response
        near = open_nsd(published["root"], subject=1, sessions=[2]).response
        np.testing.assert_array_equal(far, near)
    finally:
        server.close()
