"""What was done to responses, written down; and the parts of a Dataset that steps work on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.schema import neuroid_dim, role_dim, sample_dim

STEPS = "preprocessing"
"""The attribute that lists the steps."""


def with_step(ds: xr.Dataset, step: str, **settings: Any) -> xr.Dataset:
    """Append a step to the attribute ``preprocessing``.

    Parameters
    ----------
    ds : Dataset
    step : str
        Name of the step.
    **settings
        What was done, and on which data it rests (``scope``); JSON values.

    Returns
    -------
    Dataset
    """
    return ds.assign_attrs({STEPS: [*ds.attrs.get(STEPS, []), {"step": step, **settings}]})


def response_of(ds: xr.Dataset) -> xr.DataArray:
    """Return ``response``, lazy, whole along neuroids and time: cut along samples only.

    Raises
    ------
    SchemaError
        If there is none.
    """
    if "response" not in ds:
        names = ", ".join(map(str, ds.data_vars)) or "none"
        raise SchemaError("The Dataset", [f"it needs 'response'; its variables are: {names}"])
    array = ds["response"]
    whole = {dim: -1 for dim in (neuroid_dim(ds), role_dim(ds, "time")) if dim}
    return array.chunk(whole) if array.chunks is None or _is_cut(array, whole) else array


def _is_cut(array: xr.DataArray, dims: dict[str, int]) -> bool:
    return any(len(array.chunksizes[dim]) > 1 for dim in dims)


def groups_of(ds: xr.Dataset, scope: str) -> tuple[list[Any], np.ndarray]:
    """Return the labels of the groups of a scope, and the group of each sample.

    Parameters
    ----------
    ds : Dataset
    scope : {"session", "run", "train"}
        ``"train"`` is one group of all samples.

    Returns
    -------
    labels : list
    group : int64 array (sample,)
        Position in the labels.

    Raises
    ------
    SelectionError
        If the coordinate that the scope needs is missing.
    """
    dim = sample_dim(ds)
    if scope == "train":
        return ["train"], np.zeros(ds.sizes[dim], np.int64)
    needed = ["session", "run"] if scope == "run" else ["session"]
    for name in needed:
        if name not in ds.coords or ds[name].dims != (dim,):
            raise SelectionError(
                f"scope {scope!r} needs a coordinate '{name} ({dim})'. Type: "
                f"ds.assign_coords({name}=('{dim}', numbers)), or choose another scope"
            )
    rows = list(zip(*(ds[name].values.tolist() for name in needed), strict=True))
    labels = sorted(set(rows))
    where = {label: position for position, label in enumerate(labels)}
    return labels, np.array([where[row] for row in rows], np.int64)


def samples_of(ds: xr.Dataset, partition: str) -> np.ndarray:
    """Return the positions of the samples of a partition, such as ``"train"``.

    Raises
    ------
    SelectionError
        If there is no coordinate ``partition`` along the samples, or none of its samples is there.
    """
    dim = sample_dim(ds)
    if "partition" not in ds.coords or ds["partition"].dims != (dim,):
        raise SelectionError(
            f"which samples are for training is said by a coordinate 'partition ({dim})', and "
            f"there is none. Type: ds.assign_coords(partition=('{dim}', labels))"
        )
    found = np.flatnonzero(ds["partition"].values == partition)
    if not found.size:
        there = ", ".join(sorted({repr(p) for p in ds["partition"].values.tolist()}))
        raise SelectionError(f"no {dim} is of the partition {partition!r}; there are: {there}")
    return found


def apply_by_group(
    response: xr.DataArray,
    group: np.ndarray,
    tables: list[list[da.Array]],
    function: Callable[..., np.ndarray],
) -> xr.DataArray:
    """Apply to each sample a function of its group's tables, block by block.

    A block asks for the tables of its own groups only: where these need the whole group, as a
    mean does, a block that lies in one session needs no other session.

    Parameters
    ----------
    response : DataArray (sample, ...)
        Cut along samples (and repetitions) only.
    group : int64 array (sample,)
        Group of each sample.
    tables : list of lists of dask arrays
        Of each kind of table one for each group.
    function : callable
        Of a block of samples and one table of each kind.

    Returns
    -------
    DataArray
        float32, of the dims of ``response``, without attributes.
    """
    data = response.data
    bounds = np.cumsum((0, *data.chunks[0])).tolist()
    blocks = [(np.unique(group[a:b]).tolist(), a, b) for a, b in pairwise(bounds)]
    parts = []
    for labels, run in groupby(blocks, key=lambda block: block[0]):
        alike = list(run)
        start, stop = alike[0][1], alike[-1][2]
        own = [da.stack([table[label] for label in labels]) for table in tables]
        parts.append(_applied(data[start:stop], group[start:stop], labels, own, function))
    return xr.DataArray(da.concatenate(parts), dims=response.dims)


def _applied(
    data: da.Array,
    group: np.ndarray,
    labels: list[int],
    tables: list[da.Array],
    function: Callable[..., np.ndarray],
) -> da.Array:
    """Apply the function to blocks that hold the same groups."""
    rows = da.from_array(np.searchsorted(labels, group), chunks=(data.chunks[0],))
    axes = tuple(range(data.ndim))
    arguments: list[Any] = [data, axes, rows, (0,)]
    for position, table in enumerate(tables, 1):
        arguments += [table.rechunk(-1), tuple(100 * position + n for n in range(table.ndim))]
    return da.blockwise(
        _apply_block,
        axes,
        *arguments,
        function=function,
        concatenate=True,
        dtype=np.float32,
        meta=np.empty((0,) * data.ndim, np.float32),
    )


def _apply_block(
    block: np.ndarray,
    groups: np.ndarray,
    *tables: np.ndarray,
    function: Callable[..., np.ndarray],
) -> np.ndarray:
    out = np.empty(block.shape, np.float32)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        out[rows] = function(block[rows], *(table[group] for table in tables))
    return out
