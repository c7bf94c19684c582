"""Statistics in parts and files of volumes, against numpy and nibabel."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import CorruptStoreError, StoreError
from nedx.sources.nifti import open_volumes
from nedx.sources.sections import Section, SectionBlock, Statistics
from nedx.store.location import Location


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(1, 39), max_size=6, unique=True),
    offset=st.sampled_from([0.0, 1e4]),
    missing=st.booleans(),
)
def test_statistics_do_not_depend_on_the_parts(cuts, offset, missing):
    values = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    values = (values + offset).astype(np.float32)
    values[:, 4] = np.float32(0.1)
    if missing:
        values[3:9, 2] = np.nan
    found = Statistics.of(np.split(values, sorted(cuts)))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found.mean, np.nanmean(exact, 0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.deviation[:4], np.nanstd(exact, 0)[:4], rtol=1e-9)
    assert np.isinf(found.deviation[4])


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "mgh", "mgz"])
def test_any_volumes_and_voxels_of_any_file(tmp_path, kind):
    values = np.random.default_rng(0).standard_normal((4, 3, 2, 7)).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    image = nibabel.Nifti1Image if kind.startswith("nii") else nibabel.MGHImage
    nibabel.save(image(values, affine), tmp_path / f"a.{kind}")
    file = open_volumes(Location.of(tmp_path), f"a.{kind}")
    assert file.shape == (4, 3, 2, 7)
    np.testing.assert_allclose(np.reshape(file.affine, (4, 4)), affine)
    volumes, voxels = np.array([6, 0, 3, 3]), np.array([23, 2, 11, 0])
    flat = values.reshape(24, 7, order="F")
    np.testing.assert_array_equal(file.read(volumes, voxels), flat[np.ix_(voxels, volumes)].T)
    np.testing.assert_array_equal(file.volume(5), values[..., 5])


def test_scaled_integers(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 3, 2, 7)) * 50
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    file = open_volumes(Location.of(tmp_path), "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(file.volume(2), expected[..., 2], rtol=1e-5, atol=1e-4)


def test_gzip_is_unpacked_once(tmp_path):
    values = np.zeros((4, 3, 2, 7), np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    first = open_volumes(Location.of(tmp_path), "a.nii.gz")
    packed, unpacked = tmp_path / "a.nii.gz", Path(first.location.url, first.key)
    assert gzip.decompress(packed.read_bytes()) == unpacked.read_bytes()
    assert open_volumes(Location.of(tmp_path), "a.nii.gz") == first
    nibabel.save(nibabel.Nifti1Image(values + 1, np.eye(4)), tmp_path / "a.nii.gz")
    assert (open_volumes(Location.of(tmp_path), "a.nii.gz").volume() == 1).all()


def test_files_that_cannot_be_read(tmp_path):
    where = Location.of(tmp_path)
    with pytest.raises(StoreError, match="no file .*a.nii"):
        open_volumes(where, "a.nii")
    (tmp_path / "a.nii").write_bytes(b"text" * 200)
    with pytest.raises(CorruptStoreError, match="no NIfTI or MGH file"):
        open_volumes(where, "a.nii")
    (tmp_path / "a.nii.gz").write_bytes(b"text" * 200)
    with pytest.raises(CorruptStoreError, match="damaged"):
        open_volumes(where, "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2, 7)), np.eye(4)), tmp_path / "b.nii")
    file = open_volumes(where, "b.nii")
    (tmp_path / "b.nii").write_bytes((tmp_path / "b.nii").read_bytes()[:600])
    block = SectionBlock(Section.whole(file, "run 1"), np.arange(7), np.arange(24), "none", "error")
    with pytest.raises(CorruptStoreError, match="is cut short"):
        block()


def test_what_fails_on_the_way_is_no_damage(tmp_path, monkeypatch):
    """A bucket that cannot be reached is not answered with 'fetch the file again'."""

    def lost(_):
        raise StoreError("the bucket cannot be reached")

    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "a.nii")
    monkeypatch.setattr(nibabel.Nifti1Image, "from_file_map", lost)
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        open_volumes(Location.of(tmp_path), "a.nii")
    assert not isinstance(caught.value, CorruptStoreError)
