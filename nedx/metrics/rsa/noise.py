"""Whitening of patterns with the covariance of the noise of presentations."""

from __future__ import annotations

from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.metrics.rsa.patterns import patterns

Noise = Literal["shrinkage", "diagonal"]


def whitened(
    given: xr.DataArray,
    data: xr.DataArray | xr.Dataset,
    noise: Noise | xr.DataArray | np.ndarray,
    arrangement: dict[str, Any],
) -> xr.DataArray:
    """Multiply arranged patterns by a square root of the noise precision, lazily.

    Parameters
    ----------
    given : DataArray, (..., condition, fold, pattern)
        Arranged patterns.
    data : DataArray or Dataset
        Where they came from; the residuals of its presentations estimate the noise.
    noise : {"shrinkage", "diagonal"} or array, (pattern, pattern)
        How to estimate the covariance, or the precision matrix itself.
    arrangement : dict
        How to arrange presentations in folds, as `patterns` takes it.

    Returns
    -------
    DataArray
        Like ``given``.

    Raises
    ------
    SchemaError
        If a precision matrix is of another size or not positive definite, or nothing was
        repeated.
    """
    if isinstance(noise, str):
        if noise not in ("shrinkage", "diagonal"):
            raise ValueError(f"noise is 'shrinkage', 'diagonal' or an array, not {noise!r}")
        presentations = patterns(data, **arrangement)
        if presentations.sizes["fold"] < 2:
            raise SchemaError("the responses", ["no repeats to estimate the noise from"])
        root = _estimated(presentations.data, given.data, noise)
    else:
        root = da.from_array(_given_root(np.asarray(noise), given.sizes["pattern"]), chunks=-1)
    lead = "abcdefgh"[: given.ndim - 3]
    axes = lead if isinstance(noise, str) else ""
    made = da.blockwise(
        _multiplied,
        f"{lead}xyz",
        given.data,
        f"{lead}xyz",
        root,
        f"{axes}zw",
        concatenate=True,
        align_arrays=False,
        dtype=given.dtype,
        meta=np.empty((0,) * given.ndim, dtype=given.dtype),
    )
    return given.copy(data=made)


def shrunk_covariance(gram: np.ndarray, fourth: np.ndarray, count: int, freedom: int) -> np.ndarray:
    """Shrink a covariance to a multiple of the identity.

    Ledoit & Wolf 2004, Journal of Multivariate Analysis 88:365, from sums that blocks can add.

    Parameters
    ----------
    gram : ndarray, (..., p, p)
        The sum of the outer products of residuals.
    fourth : ndarray, (...)
        The sum of their norms to the fourth power.
    count : int
        How many residuals.
    freedom : int
        How many of them are independent: the result is scaled by count / freedom.

    Returns
    -------
    ndarray of float64, (..., p, p)
    """
    sample = gram / count
    width = sample.shape[-1]
    scale = np.trace(sample, axis1=-2, axis2=-1)[..., np.newaxis, np.newaxis] / width
    target = scale * np.eye(width)
    distance = ((sample - target) ** 2).sum(axis=(-2, -1))
    error = (fourth / count - (sample**2).sum(axis=(-2, -1))) / count
    with np.errstate(invalid="ignore"):
        share = np.where(distance > 0, np.minimum(error, distance) / distance, 1.0)
    share = share[..., np.newaxis, np.newaxis]
    return (share * target + (1 - share) * sample) * (count / freedom)


def _estimated(presentations: da.Array, given: da.Array, noise: Noise) -> da.Array:
    """Return the inverse square root of the noise covariance of each RDM: (..., p, p)."""
    if presentations.chunks[:-3] != given.chunks[:-3]:
        chunks = dict(enumerate(given.chunks[:-3]))
        presentations = presentations.rechunk(chunks)
    conditions, folds, width = presentations.shape[-3:]
    ndim = presentations.ndim
    sums = da.map_blocks(
        _residual_sums,
        presentations,
        dtype=np.float64,
        drop_axis=[ndim - 2, ndim - 1],
        new_axis=[ndim - 2, ndim - 1],
        chunks=(
            *presentations.chunks[:-3],
            (1,) * presentations.numblocks[-3],
            (width + 1,),
            (width,),
        ),
        meta=np.empty((0,) * ndim),
    ).sum(axis=ndim - 3)
    return sums.map_blocks(
        _inverse_root,
        noise,
        conditions * folds,
        conditions * (folds - 1),
        dtype=np.float64,
        chunks=(*sums.chunks[:-2], (width,), (width,)),
        meta=np.empty((0,) * (ndim - 1)),
    )


def _residual_sums(presentations: np.ndarray) -> np.ndarray:
    """Sum outer products of residuals, and in a last row norms ^ 4: (..., 1, p + 1, p)."""
    values = presentations.astype(np.float64)
    values -= values.mean(axis=-2, keepdims=True)
    values = values.reshape(*values.shape[:-3], -1, values.shape[-1])
    gram = np.matmul(values.swapaxes(-1, -2), values)
    fourth = ((values**2).sum(axis=-1) ** 2).sum(axis=-1)
    row = np.zeros((*gram.shape[:-2], 1, gram.shape[-1]))
    row[..., 0, 0] = fourth
    return np.concatenate([gram, row], axis=-2)[..., np.newaxis, :, :]


def _inverse_root(sums: np.ndarray, noise: Noise, count: int, freedom: int) -> np.ndarray:
    gram, fourth = sums[..., :-1, :], sums[..., -1, 0]
    if not np.isfinite(gram).all():
        raise SchemaError("the responses of an RDM", ["repetitions hold NaN or infinite values"])
    if noise == "diagonal":
        variance = np.diagonal(gram, axis1=-2, axis2=-1) / freedom
        covariance = variance[..., np.newaxis] * np.eye(gram.shape[-1])
    else:
        covariance = shrunk_covariance(gram, fourth, count, freedom)
    values, vectors = np.linalg.eigh(covariance)
    if (values <= 0).any():
        fault = "the noise covariance is singular: a neuroid is constant, or repeats are equal"
        raise SchemaError("the responses of an RDM", [fault])
    return (vectors / np.sqrt(values)[..., np.newaxis, :]) @ vectors.swapaxes(-1, -2)


def _given_root(precision: np.ndarray, width: int) -> np.ndarray:
    if precision.shape != (width, width):
        raise SelectionError(f"noise is a matrix ({width}, {width}), not {precision.shape}")
    values, vectors = np.linalg.eigh(precision.astype(np.float64))
    if not np.allclose(precision, precision.T) or values.min() < -1e-9 * abs(values.max()):
        raise SchemaError("the noise precision", ["not symmetric and positive semidefinite"])
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def _multiplied(values: np.ndarray, root: np.ndarray) -> np.ndarray:
    spread = values.reshape(*values.shape[:-3], -1, values.shape[-1])
    return np.matmul(spread.astype(np.float64), root).reshape(values.shape).astype(values.dtype)
