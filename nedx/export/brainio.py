"""Responses as an assembly of BrainIO: presentation x neuroid x time_bin."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nedx.errors import SelectionError
from nedx.export.pieces import one_group, pick
from nedx.schema import neuroid_dim, role_dim, sample_dim

# What BrainIO calls the labels that nedx has; others keep their names.
_NAMES = {"image_id": "stimulus_id", "category": "object_name"}
_MS = 1000.0


def to_brainio(
    obj: xr.Dataset | xr.DataTree, variable: str | None = None, *, multi_index: bool = True
) -> xr.DataArray:
    """Return responses as BrainIO and Brain-Score hold them; lazily.

    Subjects that share a grid become neuroids, each with its ``subject``; repetitions become
    presentations. Labels of images keep their names but for ``image_id`` (``stimulus_id``, what
    a stimulus set is joined by) and ``category`` (``object_name``).

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses ``([subject,] image | trial, [repetition,] <neuroid>[, time])``; of a tree, of
        one subject.
    variable : str, optional
        What to take; ``response`` by default.
    multi_index : bool
        True makes MultiIndexes of the labels, as assemblies in memory have them. False leaves
        them plain coordinates, which netCDF can hold and from which BrainIO makes its own:
        ``assembly.to_netcdf("assembly.nc", engine="h5netcdf")``, which
        ``pip install 'nedx[brainio]'`` brings.

    Returns
    -------
    DataArray (presentation, neuroid[, time_bin])
        With ``stimulus_id``, ``neuroid_id`` and, in ms as is usual there, ``time_bin_start`` and
        ``time_bin_end``. Attributes are those of the responses, ``units`` among them.

    Raises
    ------
    SelectionError
        If there are several subjects with neuroids of their own, no samples, no neuroids, or other
        dims besides.
    """
    array = pick(one_group(obj), variable)
    # netCDF has no float16.
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    sample, neuroid = sample_dim(array), neuroid_dim(array)
    if neuroid is None:
        raise SelectionError(f"{array.name!r} of dims {array.dims} has no neuroids")
    time, subject = role_dim(array, "time"), role_dim(array, "subject")
    repetition = role_dim(array, "repetition")
    rows = [dim for dim in (sample, repetition) if dim]
    columns = [dim for dim in (subject, neuroid) if dim]
    axes = {"presentation": rows, "neuroid": columns} | ({"time_bin": [time]} if time else {})
    extra = [str(dim) for dim in array.dims if not any(dim in dims for dims in axes.values())]
    if extra:
        raise SelectionError(f"{array.name!r} has the dims {extra} besides; select one of each")
    ordered = array.transpose(*(dim for dims in axes.values() for dim in dims))
    labels = {axis: _labels(ordered, dims) for axis, dims in axes.items() if axis != "time_bin"}
    labels["neuroid"] = _neuroid_ids(labels["neuroid"], columns)
    if time:
        labels["time_bin"] = _time_bins(array[time])
    shape = [int(np.prod([array.sizes[dim] for dim in dims])) for dims in axes.values()]
    assembly = xr.DataArray(
        ordered.data.reshape(shape),
        dims=list(axes),
        coords={name: (axis, v) for axis, some in labels.items() for name, v in some.items()},
        name=array.name,
        attrs=_plain({**array.attrs, "time_bin_units": "ms"} if time else array.attrs),
    )
    if not multi_index:
        return assembly
    for axis, some in labels.items():
        index = pd.MultiIndex.from_arrays(list(some.values()), names=list(some))
        made = xr.Coordinates.from_pandas_multiindex(index, axis)
        assembly = assembly.drop_vars(list(some)).assign_coords(made)
    return assembly


def _labels(array: xr.DataArray, dims: list[str]) -> dict[str, np.ndarray]:
    """Return the labels along the product of some dims, each as long as the product."""
    shape = [array.sizes[dim] for dim in dims]
    found = {}
    for name, coord in array.coords.items():
        if coord.dims and set(coord.dims) <= set(dims):
            own = coord.transpose(*(dim for dim in dims if dim in coord.dims))
            wide = own.values.reshape([array.sizes[d] if d in own.dims else 1 for d in dims])
            found[_NAMES.get(str(name), str(name))] = np.broadcast_to(wide, shape).reshape(-1)
        elif not coord.dims and name in ("subject", "model") and dims[-1] == neuroid_dim(array):
            found[str(name)] = np.full(int(np.prod(shape)), coord.item(), dtype=object)
    return found


def _neuroid_ids(labels: dict[str, np.ndarray], dims: list[str]) -> dict[str, np.ndarray]:
    """Put ``neuroid_id`` first: what a neuroid is called here, after its subject."""
    own = labels.get(dims[-1])
    count = len(next(iter(labels.values()))) if labels else 0
    names = np.arange(count) if own is None else own
    if "subject" in labels:
        pairs = zip(labels["subject"], names, strict=True)
        ids = np.array([f"{subject}.{name}" for subject, name in pairs], dtype=object)
    else:
        ids = np.array([str(name) for name in names], dtype=object)
    return {"neuroid_id": ids, **labels}


def _time_bins(time: xr.DataArray) -> dict[str, np.ndarray]:
    """Return where the bins begin and end, ms: half a step before and after each sample."""
    middle = time.values.astype(np.float64) * _MS
    half = float(np.diff(middle).mean()) / 2 if middle.size > 1 else 0.0
    # Rounded to a nanosecond: bins must be equal where they are compared.
    return {
        "time_bin_start": np.round(middle - half, 6),
        "time_bin_end": np.round(middle + half, 6),
    }


def _plain(attrs: dict[Any, Any]) -> dict[str, Any]:
    """Spell as JSON what netCDF has no attribute for."""
    plain = (str, int, float, np.ndarray, np.number, list, tuple)
    return {
        str(key): value
        if isinstance(value, plain) and not isinstance(value, bool)
        else json.dumps(value)
        for key, value in attrs.items()
    }
