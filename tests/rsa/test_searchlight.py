import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rsatoolbox.util.searchlight import get_searchlight_RDMs, get_volume_searchlight

from nedx.errors import SchemaError, SelectionError
from nedx.metrics.rsa import rdm, searchlight_rdm, sphere_neighbours
from tests.laziness import computes_at_most


def volume(images=6, side=4, dtype="f8", times=None):
    """Return responses of the voxels of a cube, with their places."""
    rng = np.random.default_rng(0)
    i, j, k = (index.ravel() for index in np.indices((side,) * 3))
    shape = (images, side**3) + ((times,) if times else ())
    dims = ("image", "voxel", "time")[: len(shape)]
    places = {"i": i, "j": j, "k": k, "x": 2.0 * i, "y": 2.0 * j, "z": 2.0 * k}
    return xr.DataArray(
        (rng.standard_normal(shape) + 3).astype(dtype),
        dims=dims,
        coords={
            "image_id": ("image", [f"set:{i}" for i in range(images)]),
            "voxel": np.arange(side**3) + 100,
            **{name: ("voxel", values) for name, values in places.items()},
        },
        attrs={"units": "percent"},
        name="response",
    )


def toolbox(values, centers, neighbours, method):
    events = np.arange(len(values))
    found = get_searchlight_RDMs(values, centers, neighbours, events, method=method, verbose=False)
    return np.moveaxis(found.get_matrices(), 0, -1)


@pytest.mark.parametrize("method", ["correlation", "euclidean"])
def test_spheres_equal_those_of_rsatoolbox(method, capsys):
    responses = volume()
    mask = np.ones((4, 4, 4), dtype=bool)
    # Its spheres exclude their surface: no voxel lies at 1.6.
    centers, neighbours = get_volume_searchlight(mask, radius=1.6, threshold=0)
    found = searchlight_rdm(responses, radius=1.6, coordinates=("i", "j", "k"), method=method)
    capsys.readouterr()
    assert found.dims == ("image", "image_2", "voxel")
    expected = toolbox(responses.values, centers, neighbours, method)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(found.n_neighbours, [len(some) for some in neighbours])
    in_mm = searchlight_rdm(responses, radius=3.2, method=method)
    np.testing.assert_array_equal(in_mm, found)


@pytest.mark.parametrize("method", ["correlation", "euclidean"])
def test_single_precision_agrees_to_a_millionth_whatever_the_offset_of_voxels(method):
    responses = volume(dtype="f4") + (10 * np.arange(64, dtype="f4"))[np.newaxis] % 7
    neighbours = [np.random.default_rng(c).permutation(64)[: 20 + c] for c in range(5)]
    centers = np.arange(5)
    found = searchlight_rdm(responses, neighbours, centers=centers, method=method)
    assert found.dtype == np.float32
    expected = toolbox(responses.values.astype("f8"), centers, neighbours, method)
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())


def test_each_centre_has_the_rdm_of_its_neighbours_at_each_time():
    responses = volume(times=3).expand_dims(subject=["sub-01", "sub-02"]).copy()
    responses[1] += np.random.default_rng(3).standard_normal(responses[1].shape)
    centers = np.array([5, 40])
    found = searchlight_rdm(responses, radius=2.0, centers=centers)
    assert found.dims == ("subject", "image", "image_2", "voxel", "time")
    assert list(found.voxel.values) == [105, 140]
    neighbours = sphere_neighbours(responses, 2.0, centers=centers)
    for position, some in enumerate(neighbours):
        assert centers[position] in some
        expected = rdm(responses.isel(voxel=some))
        np.testing.assert_allclose(found.isel(voxel=position), expected, atol=1e-12)


@given(chunks=st.tuples(st.integers(1, 6), st.integers(1, 64), st.integers(1, 3)))
@settings(max_examples=8)
def test_any_chunking_gives_the_same_and_nothing_is_computed_before(chunks):
    responses = volume(times=3)
    lazy = responses.copy()
    lazy.data = responses.variable.chunk(dict(zip(responses.dims, chunks, strict=True))).data
    with computes_at_most(0):
        found = searchlight_rdm(lazy, radius=2.5)
    expected = searchlight_rdm(responses, radius=2.5)
    np.testing.assert_allclose(found.compute(scheduler="sync"), expected, atol=1e-12)


def test_constant_patterns_and_single_neighbours_have_no_correlation():
    responses = volume(dtype="f4")
    responses[2] = 0.1
    found = searchlight_rdm(responses, [np.arange(10), np.array([7])], centers=np.array([0, 7]))
    assert np.isnan(found.values[2, :, 0]).all()
    assert np.isfinite(found.values[3, [0, 1, 4], 0]).all()
    assert np.isnan(found.values[..., 1]).all()


def test_what_cannot_be_searched_is_said_first():
    responses = volume()
    with pytest.raises(SelectionError, match="give neighbours= or radius="):
        searchlight_rdm(responses)
    with pytest.raises(SelectionError, match=r"no coordinates \['z'\] of voxel"):
        searchlight_rdm(responses.drop_vars("z"), radius=3)
    with pytest.raises(SelectionError, match="radius is above 0"):
        searchlight_rdm(responses, radius=0)
    with pytest.raises(SelectionError, match="positions from 0 to 63; found 64"):
        searchlight_rdm(responses, [np.array([64])] * 64)
    with pytest.raises(SelectionError, match="positions from 0 to 63; found -1"):
        searchlight_rdm(responses, [np.array([-1])] * 64)
    for wrong in (64, -1):
        with pytest.raises(SelectionError, match=f"centers are positions .* found {wrong}"):
            searchlight_rdm(responses, radius=3, centers=np.array([wrong]))
    unplaced = responses.assign_coords(x=responses.x.where(responses.x > responses.x.min()))
    with pytest.raises(SelectionError, match="have no finite x, y, z"):
        searchlight_rdm(unplaced, radius=3)
    with pytest.raises(SelectionError, match="3 neighbourhoods of 64 centers"):
        searchlight_rdm(responses, [np.array([0])] * 3)
    with pytest.raises(SchemaError, match="1 of 64 neighbourhoods are empty"):
        searchlight_rdm(responses, [np.array([], dtype=int), *[np.array([0])] * 63])
    with pytest.raises(ValueError, match="method is 'correlation' or 'euclidean'"):
        searchlight_rdm(responses, radius=3, method="crossnobis")
    with pytest.raises(SchemaError, match="one image only"):
        searchlight_rdm(responses.isel(image=[0]), radius=3)
    responses[0, 3] = np.nan
    with pytest.raises(SchemaError, match="1 of 6 patterns hold NaN"):
        searchlight_rdm(responses, radius=3).compute(scheduler="sync")
