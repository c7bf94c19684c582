"""Pearson correlation of labelled arrays, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.moments import constant, reduce_pairs


def pearson_r(x: xr.DataArray, y: xr.DataArray, dim: str) -> xr.DataArray:
    """Correlate two arrays along a dimension, lazily where one of them is lazy.

    No chunk needs the whole dimension, and large means cost no precision; see
    `nedx.metrics.moments`.

    Parameters
    ----------
    x, y : DataArray
        Both with ``dim``; other dimensions broadcast. Labels must agree exactly.
    dim : str
        The dimension to correlate along, for example ``"image"``.

    Returns
    -------
    DataArray
        float64 in [-1, 1], without ``dim``; NaN where either is constant or holds a NaN.

    Raises
    ------
    SchemaError
        If ``dim`` is missing, or labels or sizes differ.
    """
    return compare(x, y, dim, correlate, f"Pearson correlation over {dim}")


def compare(
    x: xr.DataArray, y: xr.DataArray, dim: str, kernel: Callable[[Any, Any], Any], long_name: str
) -> xr.DataArray:
    """Reduce two labelled arrays along ``dim`` by ``kernel(x, y)`` over their last axis.

    Parameters
    ----------
    x, y, dim
        As `pearson_r` takes them.
    kernel : callable
        From two arrays (..., sample), numpy or dask, to one (...).
    long_name : str
        What it is called.

    Returns
    -------
    DataArray
        float64, "1", without ``dim``.

    Raises
    ------
    SchemaError
        If ``dim`` is missing, or labels or sizes differ.
    """
    x, y = xr.broadcast(*paired((x, y), dim))
    y = y.transpose(*x.dims)
    found: xr.DataArray = xr.apply_ufunc(
        kernel,
        x,
        y,
        input_core_dims=[[dim], [dim]],
        dask="allowed",
        # Labels keep what is said of them; the units of the responses are not those of the result.
        keep_attrs="override",
    )
    found.attrs = {"units": "1", "long_name": long_name}
    return found


def paired(arrays: Sequence[xr.DataArray], dim: str) -> tuple[xr.DataArray, ...]:
    """Return arrays whose samples are the same, in the same order, or say what differs.

    Parameters
    ----------
    arrays : sequence of DataArray
    dim : str
        The dimension of the samples.

    Returns
    -------
    tuple of DataArray

    Raises
    ------
    SchemaError
        If ``dim`` is missing or empty, or labels or sizes differ.
    """
    faults = [f"no dim {dim!r}; it has {array.dims}" for array in arrays if dim not in array.dims]
    if any(array.sizes.get(dim) == 0 for array in arrays):
        faults.append(f"nothing along {dim!r}: no sample was selected")
    if faults:
        raise SchemaError("what is compared", faults)
    try:
        found = xr.align(*arrays, join="exact", copy=False)
    except ValueError as error:
        raise SchemaError("what is compared", [f"labels differ: {error}"]) from error
    # Without an index xarray would pair images by position, and drop their names silently.
    named = [array["image_id"].variable for array in found if "image_id" in array.coords]
    named = [names for names in named if names.dims == (dim,)]
    if not all(_same(named[0], names) for names in named[1:]):
        fault = "labels differ: not the same 'image_id' in the same order"
        advice = "type set_xindex('image_id') on each, then one.sel(image_id=other.image_id.values)"
        raise SchemaError("what is compared", [fault, advice])
    return found


def _same(a: xr.Variable, b: xr.Variable) -> bool:
    # Lazy labels of one Dataset are the same without being read.
    if a.chunks is not None and b.chunks is not None and a.data.name == b.data.name:
        return True
    return a.equals(b)


def correlate(x: Any, y: Any) -> Any:
    """Correlate along the last axis.

    Parameters
    ----------
    x, y : ndarray or dask array, (..., sample)
        Of the same shape.

    Returns
    -------
    ndarray or dask array of float64, (...)
    """
    return reduce_pairs(x, y, from_moments)


def from_moments(moments: np.ndarray) -> np.ndarray:
    """Return the correlation (...) of moments (6, ...), NaN where x or y is constant."""
    _, _, _, sxx, syy, sxy = moments
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(sxy / np.sqrt(sxx * syy), -1.0, 1.0)
    return np.where(constant(moments), np.nan, r)
