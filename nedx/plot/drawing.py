"""What every figure needs: axes, names with units, colours that fit the sign of the values."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, require
from nedx.export.pieces import pick, unit_in_words
from nedx.schema import role_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Letters of a line beside an axis.
_LINE = 36
_SIGNED = ("response", "response_predicted", "accuracy", "encoding_accuracy")


def axes_or_new(ax: Axes | None, size: tuple[float, float], **options: Any) -> Axes:
    """Return the axes given, or those of a new figure that pyplot does not keep.

    Parameters
    ----------
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    size : tuple of float
        Width and height of a new figure, inches.
    **options
        Of the new axes, for example ``projection="3d"``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    if ax is not None:
        return ax
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").add_subplot(**options)


def named(array: xr.DataArray) -> str:
    """Return the name of the values with their unit, for example ``"response (uV)"``, in lines."""
    name, unit = str(array.attrs.get("long_name", array.name)), unit_in_words(array)
    return textwrap.fill(f"{name} ({unit})" if unit else name, _LINE)


def colours(array: xr.DataArray, values: np.ndarray) -> dict[str, Any]:
    """Choose a colour map and its limits.

    Parameters
    ----------
    array : DataArray
        Tells by its name whether its values have a sign.
    values : ndarray
        What is drawn.

    Returns
    -------
    dict
        ``cmap``, ``vmin`` and ``vmax``: diverging and centred on 0 for what has a sign, such as
        responses and correlations; sequential from 0 for magnitudes.
    """
    most = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    if array.name in _SIGNED or np.nanmin(values, initial=0) < 0:
        return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    return {"cmap": "viridis", "vmin": 0.0, "vmax": most}


def by_subject(
    obj: xr.Dataset | xr.DataTree,
) -> Iterator[tuple[str, xr.Dataset]]:
    """Give each subject's label and data without an axis of subjects, of a grid or of a tree."""
    if isinstance(obj, xr.DataTree):
        for name, child in obj.children.items():
            if name != "truth":
                yield str(name), child.to_dataset(inherit=True)
        return
    dim = role_dim(obj, "subject")
    if dim is None:
        yield str(obj.coords["subject"].item()) if "subject" in obj.coords else "", obj
        return
    for position in range(obj.sizes[dim]):
        one = obj.isel({dim: position})
        yield str(one[dim].item()) if dim in obj.coords else str(position), one


def averaged(ds: xr.Dataset, variable: str | None, keep: tuple[str | None, ...]) -> xr.DataArray:
    """Return a variable averaged over all dims but those kept, lazily, float32."""
    array = pick(ds, variable)
    others = [dim for dim in array.dims if dim not in keep]
    mean = array.astype(np.float32).mean(others) if others else array
    mean.attrs = dict(array.attrs)
    return mean


def at_time(array: xr.DataArray, time: float | tuple[float, float] | None) -> xr.DataArray:
    """Return the values at a time or the mean over a window, seconds; all where there is no time.

    Raises
    ------
    SelectionError
        If there are several times and none is chosen, or it is not there.
    """
    dim = role_dim(array, "time")
    if dim is None:
        return array
    if time is None and array.sizes[dim] > 1:
        first, last = float(array[dim].values[0]), float(array[dim].values[-1])
        raise SelectionError(
            f"{array.name!r} has {array.sizes[dim]} times from {first:g} to {last:g} s; say which "
            "to draw: time=0.1, or a window to average: time=(0.1, 0.2)"
        )
    from nedx.selection import select

    name = array.name or "value"
    chosen = select(array.to_dataset(name=name), time=time)[name] if time is not None else array
    mean = chosen.astype(np.float32).mean(dim)
    mean.attrs = dict(array.attrs)
    return mean.rename(array.name)
