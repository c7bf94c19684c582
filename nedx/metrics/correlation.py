"""Pearson correlation of labelled arrays, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
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
    for name, array in (("x", x), ("y", y)):
        if dim not in array.dims:
            raise SchemaError(f"{name} of the pair", [f"no dim {dim!r}; it has {array.dims}"])
    try:
        x, y = xr.align(x, y, join="exact", copy=False)
    except ValueError as error:
        raise SchemaError("the pair to compare", [f"labels differ: {error}"]) from error
    x, y = xr.broadcast(x, y)
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
