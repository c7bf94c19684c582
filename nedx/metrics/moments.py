"""Moments of pairs of columns: in tiles that fit the cache, merged over chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np

# Rows and columns of a tile: two of float32 stay in a cache of 1 to 2 MB.
_TILE = (64, 4096)
# Sums about zero are kept while the squared mean is at most three times the variance.
_LARGEST_LOSS = 4.0


def reduce_pairs(x: Any, y: Any, finish: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Reduce pairs along the last axis to what ``finish`` makes of their moments.

    Moments of blocks are merged pairwise (Chan, Golub & LeVeque 1983, The American Statistician
    37:242), so that no block needs all samples.

    Parameters
    ----------
    x, y : ndarray or dask array, (..., sample)
        Of the same shape.
    finish : callable
        From (6, ...) as `pair_moments` returns them to (...).

    Returns
    -------
    ndarray or dask array of float64, (...)
    """
    if not isinstance(x, da.Array) and not isinstance(y, da.Array):
        return finish(pair_moments(np.asarray(x), np.asarray(y)))
    x, y = da.asarray(x), da.asarray(y)
    axes = tuple(range(x.ndim))
    _, (x, y) = da.core.unify_chunks(x, axes, y, axes)
    parts = da.map_blocks(
        _block_of_pairs,
        x,
        y,
        dtype=np.float64,
        new_axis=0,
        chunks=((6,), *x.chunks[:-1], (1,) * x.numblocks[-1]),
        meta=np.empty((0,) * (x.ndim + 1)),
    )
    return finish_merged(parts, merge_pairs, finish)


def finish_merged(
    parts: da.Array,
    merge: Callable[[np.ndarray], np.ndarray],
    finish: Callable[[np.ndarray], np.ndarray],
) -> da.Array:
    """Merge the moments of blocks in a tree, and finish them.

    Parameters
    ----------
    parts : dask array, (moment, ..., block)
    merge : callable
        From (moment, ..., block) to (moment, ...).
    finish : callable
        From (moment, ...) to (...).

    Returns
    -------
    dask array of float64, (...)
    """

    def merged(part: np.ndarray, axis: Any, keepdims: Any) -> np.ndarray:
        found = merge(part)
        return found[..., np.newaxis] if keepdims else found

    whole = da.reduction(
        parts,
        chunk=_keep,
        combine=merged,
        aggregate=merged,
        axis=parts.ndim - 1,
        dtype=np.float64,
        meta=np.empty((0,) * (parts.ndim - 1)),
    )
    return da.map_blocks(
        finish, whole, drop_axis=0, dtype=np.float64, meta=np.empty((0,) * (parts.ndim - 2))
    )


def pair_moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return n, both means, both sums of squares about them and that of products.

    float32 is multiplied in float32 and summed up in float64; columns whose mean is so large
    that this loses digits are taken in float64 about their mean.

    Parameters
    ----------
    x, y : ndarray, (..., sample)

    Returns
    -------
    ndarray of float64, (6, ...)
    """
    shape = x.shape[:-1]
    x, y = (np.moveaxis(part, -1, 0).reshape(part.shape[-1], -1) for part in (x, y))
    found = np.empty((6, x.shape[1]))
    tile = _TILE if x.shape[1] > 1 and x.strides[0] > x.strides[1] else _TILE[::-1]
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, x.shape[1], tile[1]):
            columns = slice(start, start + tile[1])
            found[:, columns] = _strip(x[:, columns], y[:, columns], tile[0])
    return found.reshape(6, *shape)


def merge_pairs(parts: np.ndarray) -> np.ndarray:
    """Merge moments of pairs, (6, ..., block), to (6, ...)."""
    count, mean_x, mean_y, sxx, syy, sxy = parts
    total = count.sum(axis=-1)
    all_x = (count * mean_x).sum(axis=-1) / total
    all_y = (count * mean_y).sum(axis=-1) / total
    dx, dy = mean_x - all_x[..., np.newaxis], mean_y - all_y[..., np.newaxis]
    return np.stack(
        [
            total,
            all_x,
            all_y,
            (sxx + count * dx * dx).sum(axis=-1),
            (syy + count * dy * dy).sum(axis=-1),
            (sxy + count * dx * dy).sum(axis=-1),
        ]
    )


def constant(moments: np.ndarray) -> np.ndarray:
    """Say of (6, ...) where x or y is constant: rounding noise of a mean is not a variance."""
    count, mean_x, mean_y, sxx, syy, _ = moments
    found: np.ndarray = (sxx <= count * (1e-14 * mean_x) ** 2) | (
        syy <= count * (1e-14 * mean_y) ** 2
    )
    return found


def _block_of_pairs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return pair_moments(x, y)[..., np.newaxis]


def _keep(parts: np.ndarray, axis: Any, keepdims: Any) -> np.ndarray:
    return parts


def _strip(x: np.ndarray, y: np.ndarray, rows: int) -> np.ndarray:
    """Return the moments (6, column) of a strip (sample, column)."""
    single = all(part.dtype in (np.float16, np.float32) for part in (x, y))
    about_zero = np.zeros((2, x.shape[1]))
    moments = _about(x, y, about_zero, rows, np.float32 if single else np.float64)
    raw = moments[3:5] + moments[0] * moments[1:3] ** 2
    # Numbers too small to be squared in float32 are taken again as well.
    lost = (raw > _LARGEST_LOSS * moments[3:5]) | (raw < 1e-30)
    return _about(x, y, moments[1:3], rows, np.float64) if lost.any() else moments


def _about(x: np.ndarray, y: np.ndarray, origin: np.ndarray, rows: int, dtype: Any) -> np.ndarray:
    """Return the moments of a strip from sums about ``origin (2, column)``."""
    count = len(x)
    # Converted tiles are held beside those that are read.
    rows = rows // 4 if dtype == np.float64 else rows
    sums = np.zeros((5, x.shape[1]))
    ones = np.ones(rows, dtype)
    shifted = bool(origin.any())
    for start in range(0, count, rows):
        a, b = (part[start : start + rows].astype(dtype, copy=False) for part in (x, y))
        if shifted:
            a, b = a - origin[0], b - origin[1]
        sums[0] += ones[: len(a)] @ a
        sums[1] += ones[: len(a)] @ b
        sums[2] += np.einsum("ij,ij->j", a, a)
        sums[3] += np.einsum("ij,ij->j", b, b)
        sums[4] += np.einsum("ij,ij->j", a, b)
    mean = sums[:2] / count
    products = np.array([mean[0] * mean[0], mean[1] * mean[1], mean[0] * mean[1]])
    found = np.empty((6, x.shape[1]))
    found[0] = count
    found[1:3] = origin + mean
    found[3:] = sums[2:] - count * products
    # Of a strip without variance the difference may be below zero by rounding.
    found[3:5] = np.maximum(found[3:5], 0)
    return found
