"""What nibabel and nilearn read back of volumes and surfaces."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import xarray as xr
from nilearn import surface

import nedx
from nedx.errors import SchemaError, SelectionError

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2.5, -72], [0, 0, 0, 1]])


def voxels(count=40, images=3) -> xr.Dataset:
    rng = np.random.default_rng(1)
    flat = rng.permutation(6 * 7 * 8)[:count]
    places = dict(zip("ijk", np.unravel_index(flat, (6, 7, 8)), strict=True))
    attrs = {"space": "MNI152NLin2009cAsym", "volume_shape": [6, 7, 8]}
    attrs["affine"] = AFFINE.ravel().tolist()
    values = rng.standard_normal((images, count)).astype(np.float32)
    response = {"units": "percent", "long_name": "response"}
    return xr.Dataset(
        {
            "response": (("image", "voxel"), values, response),
            "noise_ceiling": ("voxel", rng.random(count).astype(np.float32), {"units": "1"}),
        },
        {
            "voxel": ("voxel", np.arange(count), attrs),
            "image_id": ("image", [f"t:{i}" for i in range(images)]),
            "subject": "sub-02",
            **{axis: ("voxel", place) for axis, place in places.items()},
        },
    )


def test_volumes_lie_where_their_voxels_do(tmp_path):
    ds = voxels()
    nibabel.save(ds.ned.to_nifti(), tmp_path / "responses.nii.gz")
    found = nibabel.load(tmp_path / "responses.nii.gz")
    assert found.shape == (6, 7, 8, 3)
    np.testing.assert_allclose(found.affine, AFFINE)
    data = found.get_fdata()
    index = np.stack([ds[axis] for axis in "ijk"])
    np.testing.assert_allclose(data[tuple(index)], ds.response.values.T, rtol=1e-6)
    assert np.isfinite(data[..., 0]).sum() == ds.sizes["voxel"]
    assert found.header.get_xyzt_units()[0] == "mm"
    assert int(found.header["sform_code"]) == 4
    assert found.header["descrip"].item() == b"response (percent)"
    said = json.loads(found.header.extensions[0].get_content())
    assert said["units"] == "percent"
    assert said["subject"] == "sub-02"
    assert said["volumes"]["image_id"] == ["t:0", "t:1", "t:2"]


def test_a_statistic_is_one_volume_with_nothing_outside():
    ds = voxels()
    image = ds.ned.to_nifti("noise_ceiling", fill=0)
    assert image.shape == (6, 7, 8)
    assert np.isclose(np.asarray(image.dataobj).sum(), float(ds.noise_ceiling.sum()), rtol=1e-5)
    # A point of the world, found with nibabel's own means.
    voxel = 7
    world = AFFINE @ [*(int(ds[axis][voxel]) for axis in "ijk"), 1]
    back = np.linalg.inv(image.affine) @ world
    value = image.get_fdata()[tuple(np.rint(back[:3]).astype(int))]
    assert np.isclose(value, float(ds.noise_ceiling[voxel]))


def test_many_volumes_are_of_the_second_kind(tmp_path):
    ds = voxels(count=3).isel(image=np.arange(40_000) % 3)
    image = ds.ned.to_nifti()
    nibabel.save(image, tmp_path / "many.nii")
    found = nibabel.load(tmp_path / "many.nii")
    assert found.shape == (6, 7, 8, 40_000)
    places = tuple(ds[axis].values for axis in "ijk")
    np.testing.assert_array_equal(found.dataobj[..., 39_999][places], ds.response.values[39_999])


def test_times_become_the_fourth_axis_in_seconds():
    ds = voxels().rename(image="time").drop_vars("image_id").assign_coords(time=[0.0, 1.6, 3.2])
    image = ds.ned.to_nifti()
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert np.isclose(image.header.get_zooms()[3], 1.6)


def test_simulated_voxels_go_out_and_come_back():
    tree = nedx.open("sim-fmri")
    ds = tree.ned.sel(subject=2).isel(image=slice(2), repetition=0)
    image = ds.ned.to_nifti()
    one = nedx.open("sim-fmri", subject=2).isel(image=slice(2), repetition=0)
    places = tuple(one[axis].values for axis in "ijk")
    np.testing.assert_allclose(
        image.get_fdata()[places], one.response.values.T.astype(np.float32), rtol=1e-6
    )
    world = nibabel.affines.apply_affine(image.affine, np.stack(places, 1))
    np.testing.assert_allclose(world, np.stack([one[axis] for axis in "xyz"], 1), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ds: ds.drop_vars("k"), "no coordinate 'k'"),
        (lambda ds: ds.drop_vars("voxel"), "volume_shape.*\n.*affine"),
        (lambda ds: ds.assign_coords(i=ds.i + 1), "count from 0"),
        (lambda ds: ds.assign_coords(i=ds.i * 0, j=ds.j * 0, k=ds.k * 0), "same i, j, k"),
        (lambda ds: ds.rename(voxel="vertex"), "'voxel' as the neuroid"),
    ],
)
def test_voxels_that_are_nowhere(change, says):
    with pytest.raises(SchemaError, match=says):
        change(voxels()).ned.to_nifti()


def test_more_axes_and_bytes_than_a_volume_has():
    with pytest.raises(SelectionError, match="one more"):
        voxels().expand_dims(model=2).ned.to_nifti()
    big = voxels().isel(image=np.zeros(10**7, int), voxel=[0])
    with pytest.raises(SelectionError, match=r"GiB in memory.*ds\.isel"):
        big.ned.to_nifti()


def vertices(density="10k", count=10_242, kept=None) -> xr.Dataset:
    rng = np.random.default_rng(2)
    coords = {
        "vertex": (
            "vertex",
            np.arange(2 * count),
            {"space": "fsaverage", "density": density, "n_vertices_lh": count},
        ),
        "hemisphere": ("vertex", np.repeat(["L", "R"], count)),
        "vertex_index": ("vertex", np.tile(np.arange(count), 2)),
        "image_id": ("image", ["t:0", "t:1"]),
    }
    values = rng.standard_normal((2, 2 * count)).astype(np.float32)
    ds = xr.Dataset({"response": (("image", "vertex"), values, {"units": "percent"})}, coords)
    return ds if kept is None else ds.isel(vertex=kept)


def test_hemispheres_are_two_files_left_first(tmp_path):
    ds = vertices()
    images = ds.ned.to_gifti()
    assert list(images) == ["L", "R"]
    for side, half in zip("LR", (slice(0, 10_242), slice(10_242, None)), strict=True):
        path = tmp_path / f"hemi-{side}.func.gii"
        nibabel.save(images[side], path)
        np.testing.assert_array_equal(surface.load_surf_data(path), ds.response.values[:, half].T)
        found = nibabel.load(path)
        structure = {"L": "CortexLeft", "R": "CortexRight"}[side]
        assert found.meta["AnatomicalStructurePrimary"] == structure
        assert found.meta["Units"] == "percent"
        assert [array.meta["Name"] for array in found.darrays] == ["t:0", "t:1"]


def test_a_roi_leaves_the_rest_of_the_surface_empty():
    ds = vertices("41k", 40_962, kept=[5, 40_000, 40_961])
    images = ds.ned.to_gifti()
    assert list(images) == ["L"]
    values = images["L"].darrays[1].data
    assert values.shape == (40_962,)
    assert np.flatnonzero(np.isfinite(values)).tolist() == [5, 40_000, 40_961]
    np.testing.assert_array_equal(values[[5, 40_000, 40_961]], ds.response.values[1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ds: ds.drop_vars("hemisphere"), "no coordinate 'hemisphere'"),
        (lambda ds: ds.assign_coords(vertex_index=ds.vertex), "10k has 10242"),
        (lambda ds: ds.drop_vars("vertex"), "space and density"),
        (lambda ds: ds.rename(vertex="voxel"), "'vertex' as the neuroid"),
    ],
)
def test_vertices_that_are_nowhere(change, says):
    with pytest.raises(SchemaError, match=says):
        change(vertices()).ned.to_gifti()


def test_real_volumes_survive(shared_data):
    from nedx.sources.haxby2001 import open_haxby

    folder = shared_data / "haxby2001_pymvpa"
    if not folder.is_dir():
        pytest.skip(f"the volumes of Haxby et al. are not at {folder}")
    image = open_haxby(folder).isel(trial=slice(3)).ned.to_nifti(fill=0)
    published = nibabel.load(folder / "bold.nii.gz")
    first_run = published.dataobj[..., :121].astype(np.float64)
    mask = nibabel.load(folder / "mask.nii.gz")
    inside = np.asarray(mask.dataobj).reshape(image.shape[:3]) > 0
    np.testing.assert_allclose(image.affine, mask.affine, atol=1e-5)
    mean = first_run.mean(axis=3)[inside]
    for volume in range(3):
        expected = 100 * (first_run[..., volume][inside] - mean) / mean
        found = image.dataobj[..., volume]
        np.testing.assert_allclose(found[inside], expected, rtol=1e-3, atol=1e-3)
        assert not found[~inside].any()
