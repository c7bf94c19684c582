"""Pearson correlation of labelled arrays, in one pass over the data."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError


def pearson_r(x: xr.DataArray, y: xr.DataArray, dim: str) -> xr.DataArray:
    """Correlate two arrays along a dimension, lazily where one of them is lazy.

    The moments of every block are merged pairwise (Chan, Golub & LeVeque 1983, The American
    Statistician 37:242), in float64, so that no chunk needs the whole dimension and large means
    cost no precision.

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
    for name, array in (("x", x), ("y", y)):
        if dim not in array.dims:
            raise SchemaError(f"{name} of pearson_r", [f"no dim {dim!r}; it has {array.dims}"])
    try:
        x, y = xr.align(x, y, join="exact", copy=False)
    except ValueError as error:
        raise SchemaError("the pair of pearson_r", [f"labels differ: {error}"]) from error
    x, y = xr.broadcast(x, y)
    y = y.transpose(*x.dims)
    r = xr.apply_ufunc(
        correlate,
        x,
        y,
        input_core_dims=[[dim], [dim]],
        dask="allowed",
        # Labels keep what is said of them; the units of the responses are not those of r.
        keep_attrs="override",
    )
    r.attrs = {"units": "1", "long_name": f"Pearson correlation over {dim}"}
    return r


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
    if not isinstance(x, da.Array) and not isinstance(y, da.Array):
        return _finish(_moments(np.asarray(x), np.asarray(y))[..., 0])
    x, y = da.asarray(x), da.asarray(y)
    axes = tuple(range(x.ndim))
    _, (x, y) = da.core.unify_chunks(x, axes, y, axes)
    parts = da.map_blocks(
        _moments,
        x,
        y,
        dtype=np.float64,
        new_axis=0,
        chunks=((6,), *x.chunks[:-1], (1,) * x.numblocks[-1]),
        meta=np.empty((0,) * (x.ndim + 1)),
    )
    merged = da.reduction(
        parts,
        chunk=_keep,
        combine=_merge,
        aggregate=_merge,
        axis=parts.ndim - 1,
        dtype=np.float64,
        meta=np.empty((0,) * (parts.ndim - 1)),
    )
    return da.map_blocks(_finish, merged, drop_axis=0, dtype=np.float64, meta=np.empty((0,) * 1))


def _moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return n, both means, both sums of squares and that of products: (6, ..., 1)."""
    count = x.shape[-1]
    mean_x = x.mean(axis=-1, dtype=np.float64, keepdims=True)
    mean_y = y.mean(axis=-1, dtype=np.float64, keepdims=True)
    dx, dy = x - mean_x, y - mean_y
    pairs = ((dx, dx), (dy, dy), (dx, dy))
    sums = [np.einsum("...i,...i->...", a, b)[..., np.newaxis] for a, b in pairs]
    return np.stack([np.full_like(mean_x, count), mean_x, mean_y, *sums])


def _merge(parts: np.ndarray, axis: Any, keepdims: Any) -> np.ndarray:
    """Merge the moments of several blocks, which lie along the last axis."""
    count, mean_x, mean_y, sxx, syy, sxy = parts
    total = count.sum(axis=-1)
    all_x = (count * mean_x).sum(axis=-1) / total
    all_y = (count * mean_y).sum(axis=-1) / total
    dx, dy = mean_x - all_x[..., np.newaxis], mean_y - all_y[..., np.newaxis]
    merged = np.stack(
        [
            total,
            all_x,
            all_y,
            (sxx + count * dx * dx).sum(axis=-1),
            (syy + count * dy * dy).sum(axis=-1),
            (sxy + count * dx * dy).sum(axis=-1),
        ]
    )
    return merged[..., np.newaxis] if keepdims else merged


def _keep(parts: np.ndarray, axis: Any, keepdims: Any) -> np.ndarray:
    return parts


def _finish(moments: np.ndarray) -> np.ndarray:
    _, mean_x, mean_y, sxx, syy, sxy = moments
    # A constant leaves rounding noise of its mean, not an exact zero.
    constant = (sxx <= moments[0] * (1e-14 * mean_x) ** 2) | (
        syy <= moments[0] * (1e-14 * mean_y) ** 2
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(sxy / np.sqrt(sxx * syy), -1.0, 1.0)
    return np.where(constant, np.nan, r)
