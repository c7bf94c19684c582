"""How much a prediction explains, against scipy, scikit-learn and the formulas."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from nedx.errors import SchemaError
from nedx.metrics.accuracy import determination, explained_variance, squared_correlation
from tests.laziness import computes_at_most


def pair(images=60, voxels=5, offset=0.0, dtype="f8"):
    rng = np.random.default_rng(0)
    measured = rng.standard_normal((images, voxels))
    predicted = 0.7 * measured + 0.4 * rng.standard_normal(measured.shape) + 0.1
    attrs = {"units": "percent"}
    return tuple(
        xr.DataArray((a + offset).astype(dtype), dims=("image", "voxel"), attrs=attrs)
        for a in (measured, predicted)
    )


@pytest.mark.parametrize(("offset", "dtype", "error"), [(0, "f8", 1e-12), (50, "f4", 1e-6)])
def test_the_two_kinds_of_r2_are_told_apart(offset, dtype, error):
    measured, predicted = pair(offset=offset, dtype=dtype)
    columns = list(zip(measured.values.T, predicted.values.T, strict=True))
    squared = [scipy.stats.pearsonr(m.astype("f8"), p.astype("f8"))[0] ** 2 for m, p in columns]
    of_mean = r2_score(
        measured.values.astype("f8"), predicted.values.astype("f8"), multioutput="raw_values"
    )
    np.testing.assert_allclose(squared_correlation(measured, predicted, "image"), squared, error)
    found = determination(measured, predicted, "image")
    np.testing.assert_allclose(found, of_mean, rtol=error)
    assert found.attrs == {"units": "1", "long_name": "coefficient of determination over image"}
    # An offset of the prediction costs the one and not the other.
    shifted = predicted + 9
    np.testing.assert_allclose(squared_correlation(measured, shifted, "image"), squared, 1e-5)
    assert float(determination(measured, shifted, "image").max()) < float(found.min())


def test_a_constant_prediction_explains_nothing_and_constant_responses_nothing_can_be_said_of():
    measured, predicted = pair()
    mean = xr.zeros_like(predicted) + measured.mean("image")
    np.testing.assert_allclose(determination(measured, mean, "image"), 0, atol=1e-12)
    flat = measured.copy()
    flat[:, 0] = 2.5
    found = determination(flat, predicted, "image")
    assert np.isnan(found).values.tolist() == [True, False, False, False, False]
    assert np.isnan(squared_correlation(measured, mean, "image")).all()


@given(chunks=st.lists(st.integers(1, 9), min_size=2, max_size=6), voxels=st.integers(1, 5))
@settings(max_examples=15)
def test_any_chunking_gives_the_same(chunks, voxels):
    measured, predicted = pair(images=sum(chunks))
    with computes_at_most(0):
        lazy = determination(
            measured.chunk(image=tuple(chunks), voxel=voxels), predicted.chunk(image=4), "image"
        )
    whole = determination(measured, predicted, "image")
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), whole, rtol=1e-9, atol=1e-9)


def test_explained_variance_with_and_without_the_published_clipping():
    r = xr.DataArray([0.6, -0.4, 0.9, 0.3], dims="voxel", attrs={"units": "1", "metric": "r"})
    ceiling = xr.DataArray([0.5, 0.5, 0.5, 0.0], dims="voxel", attrs={"method": "ncsnr"})
    plain = explained_variance(r, ceiling)
    np.testing.assert_allclose(plain, [0.72, 0.32, 1.62, np.nan], rtol=1e-6)
    published = explained_variance(r, ceiling, as_published=True)
    np.testing.assert_allclose(published, [0.72, 0, 1, 1], rtol=1e-6)
    assert plain.attrs["units"] == "1"
    assert plain.attrs["clipping"] == "none"
    assert published.attrs["clipping"] == "as published"
    assert "method" not in plain.attrs


def test_what_does_not_fit_is_named():
    measured, predicted = pair()
    with pytest.raises(SchemaError, match="no dim 'trial'"):
        determination(measured, predicted, "trial")
    with pytest.raises(SchemaError, match="labels differ"):
        squared_correlation(measured, predicted.isel(image=slice(5)), "image")
