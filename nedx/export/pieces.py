"""What is taken out of a Dataset before it leaves: one subject, one variable, not too much."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError, close_matches
from nedx.schema import neuroid_dim, role_dim

MOST_BYTES = 4 * 2**30
"""What is put into memory for another tool without asking, bytes."""

_MAIN = ("response", "response_predicted", "features", "pixels")


def one_group(obj: xr.Dataset | xr.DataTree) -> xr.Dataset:
    """Return the Dataset, or the only subject of a DataTree, which is then named as a label.

    Raises
    ------
    SelectionError
        If a tree holds several subjects, each with neuroids of its own.
    """
    if isinstance(obj, xr.Dataset):
        return _with_subject(obj)
    names = [str(name) for name in obj.children]
    if len(names) != 1:
        found = ", ".join(names) or "no subject"
        raise SelectionError(
            f"a DataTree of {found}, each with neuroids of its own; expected one subject. "
            "Type tree.ned.sel(subject=1) first"
        )
    return _with_subject(obj.children[names[0]].to_dataset(inherit=True))


def _with_subject(ds: xr.Dataset) -> xr.Dataset:
    """Make a label of the subject that a group of a tree has in its attributes only."""
    name = ds.attrs.get("subject")
    # Voxel 3 of one subject is not voxel 3 of another where their tables are joined.
    return ds if name is None or "subject" in ds.variables else ds.assign_coords(subject=str(name))


def one_subject(array: xr.DataArray) -> xr.DataArray:
    """Drop the axis of a single subject, keeping its label as a scalar coordinate.

    Raises
    ------
    SelectionError
        If there are several subjects.
    """
    dim = role_dim(array, "subject")
    if dim is None:
        return array
    if array.sizes[dim] != 1:
        labels = array[dim].values.tolist() if dim in array.coords else array.sizes[dim]
        raise SelectionError(
            f"{array.name!r} holds {array.sizes[dim]} subjects ({labels}); expected one. "
            "Type ds.ned.sel(subject=1) first"
        )
    return array.isel({dim: 0})


def pick(ds: xr.Dataset, variable: str | None = None) -> xr.DataArray:
    """Return a variable or coordinate by name; by default the responses, or what there is.

    Raises
    ------
    SelectionError
        If it is not there.
    """
    if variable is None:
        variable = next((name for name in _MAIN if name in ds.data_vars), None)
        if variable is None:
            there = ", ".join(map(str, ds.data_vars)) or "none"
            raise SelectionError(f"no variable 'response'; the variables are: {there}")
    if variable not in ds:
        options = [*map(str, ds.data_vars), *map(str, ds.coords)]
        raise SelectionError(f"unknown variable {variable!r}: {close_matches(variable, options)}")
    return ds[variable]


def need_neuroids(array: xr.DataArray, *allowed: str) -> str:
    """Return the neuroid dim of an array, if it is one of those allowed.

    Raises
    ------
    SchemaError
        If there is none, or it is another.
    """
    dim = neuroid_dim(array)
    if dim not in allowed:
        wanted = " or ".join(repr(name) for name in allowed)
        raise SchemaError(
            f"{array.name!r} of dims {array.dims}", [f"expected {wanted} as the neuroid dim"]
        )
    return str(dim)


def refuse_large(nbytes: int, dims: Any, most: int = MOST_BYTES) -> None:
    """Raise before something is computed that would not fit.

    Raises
    ------
    SelectionError
        If it would need more than ``most`` bytes.
    """
    if nbytes > most:
        spelled = ", ".join(f"{name} {size:,}" for name, size in dict(dims).items())
        raise SelectionError(
            f"this would hold {nbytes / 2**30:.1f} GiB in memory ({spelled}), at most "
            f"{most / 2**30:.1f} GiB is taken. Select first, for example ds.isel(image=slice(100)) "
            "or ds.ned.sel(subject=1, roi='V1')"
        )


def labels_along(array: xr.DataArray, dim: str) -> dict[str, np.ndarray]:
    """Return the coordinates that lie along one dimension only, by name, in memory."""
    return {
        str(name): np.asarray(coord.values)
        for name, coord in array.coords.items()
        if coord.dims == (dim,)
    }


def unit_in_words(array: xr.DataArray) -> str:
    """Return the unit for people: ``"uV"``, or how what has none was normalised."""
    units = str(array.attrs.get("units", ""))
    if units in ("", "1"):
        return str(array.attrs.get("normalization", ""))
    return units
