"""Responses as a table: one row a value, its labels beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from nedx.errors import SelectionError
from nedx.export.pieces import one_group, pick

MOST_ROWS = 10_000_000
"""As many rows as a table has without being asked for more."""


def to_dataframe(
    obj: xr.Dataset | xr.DataTree, variable: str | None = None, *, max_rows: int = MOST_ROWS
) -> pd.DataFrame:
    """Return a variable as a tidy table; computes it.

    Parameters
    ----------
    obj : Dataset or DataTree
        Any dims; of a tree, of one subject.
    variable : str, optional
        What to take: ``response`` by default, or for example ``noise_ceiling``.
    max_rows : int
        The most rows to make.

    Returns
    -------
    pandas.DataFrame
        A row for each value, the last dim fastest. The columns are the labels (strings as
        categories, which take few bytes a row), and then the values under the name of the
        variable. ``attrs["units"]`` is their unit.

    Raises
    ------
    SelectionError
        If it would have more rows; says what to select.
    """
    array = pick(one_group(obj), variable)
    if array.size > max_rows:
        sizes = ", ".join(f"{dim} {size:,}" for dim, size in array.sizes.items())
        raise SelectionError(
            f"{array.name!r} would have {array.size:,} rows ({sizes}), at most {max_rows:,} are "
            "made. Select first, for example ds.isel(image=slice(100)) or "
            "ds.ned.sel(subject=1, roi='V1'), average with ds.ned.roi_mean('V1'), or type "
            f"max_rows={array.size}"
        )
    columns = {
        str(name): _column(coord, array)
        for name, coord in array.coords.items()
        if set(coord.dims) <= set(array.dims)
    }
    values = array.values.reshape(-1)
    # pandas has no float16 of its own: what it does with one overflows.
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    table = pd.DataFrame({**columns, str(array.name): values})
    table.attrs = {"units": str(array.attrs.get("units", ""))}
    return table


def _column(coord: xr.DataArray, array: xr.DataArray) -> pd.Categorical | np.ndarray:
    """Repeat labels along the dims that they do not have; strings as categories."""
    own = coord.transpose(*(dim for dim in array.dims if dim in coord.dims)).values
    categories = None
    if own.dtype.kind in "OUT":
        codes, categories = pd.factorize(own.reshape(-1).astype(object))
        own = codes.astype(np.int32).reshape(own.shape)
    shape = [array.sizes[dim] if dim in coord.dims else 1 for dim in array.dims]
    wide = np.broadcast_to(own.reshape(shape), array.shape).reshape(-1)
    if categories is None:
        return wide
    return pd.Categorical.from_codes(wide, categories=categories)
