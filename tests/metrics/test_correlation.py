import dask
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nedx.errors import SchemaError
from nedx.metrics.correlation import correlate, pearson_r
from tests.laziness import computes_at_most


def pair(images=40, vertices=7, offset=0.0, dtype="f4"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, images, vertices)) + offset
    y = 0.5 * x + rng.standard_normal(x.shape)
    dims = ("subject", "image", "vertex")
    attrs = {"units": "percent"}
    return tuple(xr.DataArray(a.astype(dtype), dims=dims, attrs=attrs) for a in (x, y))


def expected(x, y):
    x, y = (np.moveaxis(np.asarray(a, dtype="f8"), 1, -1) for a in (x, y))
    return np.vectorize(lambda a, b: scipy.stats.pearsonr(a, b)[0], signature="(n),(n)->()")(x, y)


@pytest.mark.parametrize(
    ("offset", "dtype", "error"),
    [(0.0, "f8", 1e-12), (1e4, "f8", 1e-12), (0.0, "f4", 3e-7), (1e4, "f4", 3e-7)],
)
@pytest.mark.parametrize("scale", [1e-18, 1, 1e12])
def test_it_equals_scipy(offset, dtype, error, scale):
    x, y = (part * np.array(scale, dtype) for part in pair(offset=offset, dtype=dtype))
    r = pearson_r(x, y, "image")
    np.testing.assert_allclose(r, expected(x, y), atol=error, rtol=0)
    assert r.dims == ("subject", "vertex")
    assert r.dtype == np.float64
    assert r.attrs["units"] == "1"


@given(
    first=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    second=st.integers(1, 20),
    vertex=st.integers(1, 7),
)
@settings(max_examples=20)
def test_any_chunking_gives_the_same(first, second, vertex):
    x, y = pair(images=sum(first), dtype="f8")
    lazy = x.chunk(image=tuple(first), vertex=vertex), y.chunk(image=second)
    with computes_at_most(0):
        r = pearson_r(*lazy, "image")
    whole = pearson_r(x, y, "image")
    if sum(first) > 2:
        np.testing.assert_allclose(r.compute(scheduler="sync"), whole, atol=1e-12)


def test_one_lazy_array_is_enough_and_blocks_are_read_once():
    x, y = pair()
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    lazy = x.chunk(image=10).copy()
    lazy.data = lazy.data.map_blocks(read, dtype=lazy.dtype, meta=np.empty((0, 0, 0), "f4"))
    r = pearson_r(lazy, y, "image")
    assert dask.is_dask_collection(r)
    np.testing.assert_allclose(r.compute(scheduler="sync"), expected(x, y), atol=3e-7)
    assert len(reads) == 4


def test_other_dims_broadcast_in_any_order():
    x, y = pair(dtype="f8")
    r = pearson_r(x.transpose("vertex", "subject", "image"), y.isel(subject=0), "image")
    wanted = expected(x, y.isel(subject=[0, 0]))
    np.testing.assert_allclose(r.transpose("subject", "vertex"), wanted, atol=1e-12)


def test_wide_and_sample_contiguous_arrays_equal_numpy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, 4500), dtype="f4")
    y = x + 3 * rng.standard_normal((70, 4500), dtype="f4")
    x[:, 10] += 300
    wanted = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.T, y.T, strict=True)]
    for a, b in ((x.T, y.T), (x.T.copy(), y.T.copy()), (x.T.copy(), y.T)):
        np.testing.assert_allclose(correlate(a, b), wanted, atol=3e-7)


def test_constants_and_nan_give_nan():
    x, y = pair()
    x[0, :, 0] = 0.1
    x[0, 3, 1] = np.nan
    for a, b in ((x, y), (x.chunk(image=7), y.chunk(image=9))):
        r = pearson_r(a, b, "image").compute()
        assert np.isnan(r).sum() == 2
        assert np.isnan(r[0, :2]).all()


def test_identical_arrays_correlate_at_one_and_no_more():
    x, _ = pair()
    r = pearson_r(x.chunk(image=3), x, "image")
    assert float(r.max()) <= 1
    np.testing.assert_allclose(r, 1)


def test_what_does_not_fit_is_named():
    x, y = pair()
    with pytest.raises(SchemaError, match="no dim 'trial'"):
        pearson_r(x, y, "trial")
    a, b = (z.assign_coords(vertex=np.arange(7) + i) for i, z in enumerate((x, y)))
    with pytest.raises(SchemaError, match="labels differ"):
        pearson_r(a, b, "image")


def test_labels_keep_their_attributes_and_r_does_not_take_those_of_the_responses():
    rng = np.random.default_rng(0)
    time = xr.Variable("time", [0.0, 0.1], {"units": "s"})
    x = xr.DataArray(
        rng.standard_normal((9, 2)), dims=("image", "time"), coords={"time": time},
        attrs={"units": "uV"},
    )  # fmt: skip
    r = pearson_r(x, x + 1, "image")
    assert r.attrs["units"] == "1"
    assert r.time.attrs == {"units": "s"}


def test_images_are_never_paired_by_position():
    x, _ = pair()
    x = x.assign_coords(image_id=("image", [f"set:{i}" for i in range(x.sizes["image"])]))
    other = x.isel(image=slice(None, None, -1))
    for a, b in ((x, other), (x.chunk(image=3), other.chunk(image=3))):
        with pytest.raises(SchemaError, match="not the same 'image_id' in the same order"):
            pearson_r(a, b, "image")
    named = [z.set_xindex("image_id") for z in (x, other)]
    matched = named[1].sel(image_id=named[0].image_id.values)
    np.testing.assert_allclose(pearson_r(named[0], matched, "image"), 1)
    # One of the two may not say whose responses they are.
    np.testing.assert_allclose(pearson_r(x, x.drop_vars("image_id"), "image"), 1)


def test_labels_that_are_shared_are_not_read():
    x, _ = pair()
    ids = [f"set:{i}" for i in range(x.sizes["image"])]
    lazy = x.assign_coords(image_id=("image", ids)).chunk(image=3)
    with computes_at_most(0):
        pearson_r(lazy, lazy + 1, "image")


def test_no_samples_are_said():
    x, y = pair()
    with pytest.raises(SchemaError, match="nothing along 'image'"):
        pearson_r(x.isel(image=[]), y.isel(image=[]), "image")
