"""From single trials to repetitions of images, and to their mean."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.metrics.repeats import labels_of
from nedx.preprocessing.steps import response_of, with_step
from nedx.schema import parse_without_units, role_dim

_BLOCK_BYTES = 2**25


def stack_repetitions(ds: xr.Dataset, count: int | None = None) -> xr.Dataset:
    """Give trials the dimensions image and repetition, lazily.

    Parameters
    ----------
    ds : Dataset
        Responses ``(trial, ...)`` with ``image_id (trial)``. Trials of an image are taken in the
        order of ``repetition (trial)`` where there is one, else as they come.
    count : int, optional
        Repetitions of each image, its first ones; by default all, of which each image must then
        have the same number.

    Returns
    -------
    Dataset
        ``response (image, repetition, ...)``, images as they first come. Coordinates of trials
        are kept: ``(image)`` where all trials of an image agree, else ``(image, repetition)``.

    Raises
    ------
    SelectionError
        If there are no trials, or an image has fewer repetitions than ``count``, or another
        number than the others.
    """
    dim = _trial_dim(ds)
    order, counts = _ordered(ds, dim)
    least, most = int(counts.min()), int(counts.max())
    if count is None and least != most:
        raise SelectionError(
            f"images have {least} to {most} repetitions; choose one partition, type "
            f"count={least} for the first {least} of each, or average_repetitions(ds)"
        )
    count = most if count is None else count
    if not 1 <= count <= least:
        raise SelectionError(f"count is 1 to {least}, the fewest repetitions of an image")
    starts = np.cumsum(counts) - counts
    rows = order[starts[:, None] + np.arange(count)]
    response = response_of(ds).isel({dim: rows.ravel()})
    step = max(1, _BLOCK_BYTES // max(1, count * response[0].nbytes)) * count
    data = response.data.rechunk({0: step})
    stacked = data.reshape((len(rows), count, *data.shape[1:]), merge_chunks=False)
    dims = ("image", "repetition", *response.dims[1:])
    coords: dict[Hashable, Any] = {
        name: _stacked(coord, dim, rows) for name, coord in ds.coords.items() if name != dim
    }
    coords["repetition"] = np.arange(count, dtype=np.int16)
    made = xr.Dataset({"response": (dims, stacked, response.attrs)}, coords, dict(ds.attrs))
    return parse_without_units(with_step(made, "stack_repetitions", count=count))


def _stacked(coord: xr.DataArray, dim: str, rows: np.ndarray) -> Any:
    if dim not in coord.dims:
        return coord.variable
    others = tuple(name for name in coord.dims if name != dim)
    values = coord.transpose(dim, *others).values[rows]
    if (values == values[:, :1]).all():
        return ("image", *others), values[:, 0], coord.attrs
    return ("image", "repetition", *others), values, coord.attrs


def average_repetitions(ds: xr.Dataset) -> xr.Dataset:
    """Average the repetitions of each image, lazily.

    Parameters
    ----------
    ds : Dataset
        Responses ``(trial, ...)`` with ``image_id (trial)``, or ``(image, repetition, ...)``.
        Images may differ in the number of their trials.

    Returns
    -------
    Dataset
        ``response (image, ...)`` float32, images as they first come, with ``n_repetitions
        (image)``; repetitions that are NaN are left out of the mean, and counted all the same.
        Coordinates of trials are kept where all trials of an image agree. z-scores
        that were averaged still say so, but no longer have unit variance.

    Raises
    ------
    SelectionError
        If there are neither trials nor repetitions.
    """
    repetition = role_dim(ds, "repetition")
    if repetition is not None:
        array = ds["response"]
        mean = array.mean(repetition, dtype=np.float64).astype(np.float32)
        kept = ds.drop_dims(repetition).assign(response=mean.assign_attrs(array.attrs))
        image = role_dim(ds, "stimulus") or "image"
        counts = np.full(ds.sizes[image], ds.sizes[repetition], np.int32)
        kept = kept.assign_coords(n_repetitions=(image, counts))
        return parse_without_units(with_step(kept, "average_repetitions"))
    dim = _trial_dim(ds)
    order, counts = _ordered(ds, dim)
    response = response_of(ds).isel({dim: order})
    trials, images = _blocks(counts, response[0].nbytes)
    data = response.chunk({dim: trials}).data
    owners = da.from_array(np.repeat(np.arange(counts.size), counts), (trials,))
    axes = tuple(range(response.ndim))
    mean = da.blockwise(
        _block_means,
        axes,
        data,
        axes,
        owners,
        (0,),
        adjust_chunks={0: images},
        dtype=np.float32,
        meta=np.empty((0,) * response.ndim, np.float32),
    )
    dims = ("image", *response.dims[1:])
    coords = _agreeing(ds, dim, order, counts)
    made = xr.Dataset({"response": (dims, mean, response.attrs)}, coords, dict(ds.attrs))
    return parse_without_units(with_step(made, "average_repetitions"))


def _trial_dim(ds: xr.Dataset) -> str:
    dim = role_dim(ds, "trial")
    if dim is None or "image_id" not in ds.coords:
        found = ", ".join(map(str, ds.dims))
        raise SelectionError(
            f"repetitions are told by trials with an 'image_id'; the dimensions are: {found}"
        )
    return dim


def _ordered(ds: xr.Dataset, dim: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the trials image by image, and how many each image has; images as they first come."""
    names = labels_of(ds, "image_id")
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    image = rank[inverse]
    known = "repetition" in ds.coords and ds["repetition"].dims == (dim,)
    repetition = ds["repetition"].values if known else np.zeros(ds.sizes[dim])
    return np.lexsort((repetition, image)), np.bincount(image)


def _blocks(counts: np.ndarray, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut ordered trials into blocks of whole images: trials and images in each."""
    step = max(1, _BLOCK_BYTES // max(1, int(counts.max()) * size))
    parts = [counts[start : start + step] for start in range(0, counts.size, step)]
    return tuple(int(part.sum()) for part in parts), tuple(part.size for part in parts)


def _block_means(block: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Average ``(trial, ...)`` over the runs of equal owners, float32 (image, ...)."""
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    sums = np.add.reduceat(block.astype(np.float64), starts, axis=0)
    counts = np.diff(starts, append=owners.size).reshape(-1, *(1,) * (block.ndim - 1))
    means: np.ndarray = (sums / counts).astype(np.float32)
    return means


def _agreeing(
    ds: xr.Dataset, dim: str, order: np.ndarray, counts: np.ndarray
) -> dict[Hashable, Any]:
    """Return the coordinates, those of trials only where all trials of each image agree."""
    owner = np.repeat(np.arange(counts.size), counts)
    firsts = order[np.cumsum(counts) - counts]
    coords: dict[Hashable, Any] = {"n_repetitions": ("image", counts.astype(np.int32))}
    for name, coord in ds.coords.items():
        if dim not in coord.dims:
            coords[name] = coord.variable
            continue
        others = tuple(other for other in coord.dims if other != dim)
        values = coord.transpose(dim, *others).values
        if name != dim and (values[order] == values[firsts][owner]).all():
            coords[name] = (("image", *others), values[firsts], coord.attrs)
    return coords
