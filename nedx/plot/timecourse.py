"""Time courses with the interval that a bootstrap over subjects or images gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask
import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.export.pieces import one_group, pick
from nedx.metrics.inference import bootstrap_mean
from nedx.plot.drawing import axes_or_new, named
from nedx.schema import role_dim, sample_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_timecourse(
    obj: xr.Dataset | xr.DataTree,
    variable: str | None = None,
    *,
    by: str | None = None,
    over: str | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mean over time, a line for each value of a label, with a bootstrap interval.

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses, accuracies, ceilings ``(..., time)``; of a tree, of one subject. Select channels
        or average ROIs first: ``ds.ned.sel(channel="visual")``, ``ds.ned.roi_mean("V1")``.
    variable : str, optional
        What to draw; ``response`` by default.
    by : str, optional
        A dim or a coordinate along one, for example ``"roi"``, ``"subject"``, ``"region"`` or
        ``"category"``: a line for each of its values. One line by default.
    over : str, optional
        The dim whose entries are resampled: ``"subject"`` where there are several of them by
        default, else the images or trials. ``"none"`` draws no interval.
    level : float
        Of the interval, see `nedx.metrics.inference.bootstrap_mean`.
    n_resamples, seed : int
        Of the bootstrap.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If there is no time axis, or ``by`` or ``over`` is not there.
    MissingExtraError
        If matplotlib is not installed.
    """
    array = pick(one_group(obj), variable)
    time = role_dim(array, "time")
    if time is None:
        raise SelectionError(f"{array.name!r} of dims {array.dims} has no time axis to draw along")
    parts, along = _lines(array, by)
    resampled = _resampled(array, over, along)
    kept = [dim for dim in (resampled, time) if dim]
    lines = {label: _mean_along(part, kept) for label, part in parts.items()}
    (lines,) = dask.compute(lines)
    ax = axes_or_new(ax, (6.0, 3.4))
    times = array[time].values
    ax.axhline(0, color="0.8", linewidth=0.8)
    if times[0] < 0 < times[-1]:
        ax.axvline(0, color="0.8", linewidth=0.8)
    for label, means in lines.items():
        middle = means.mean(resampled) if resampled else means
        (line,) = ax.plot(times, middle.values, label=label or None)
        if resampled and means.sizes[resampled] > 1:
            interval = bootstrap_mean(
                means, resampled, n_resamples=n_resamples, level=level, seed=seed
            )
            low, high = interval.transpose("bound", time).values
            ax.fill_between(times, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel=named(array[time]), ylabel=named(array), xlim=(times[0], times[-1]))
    if by is not None:
        ax.legend(title=by, frameon=False)
    return ax


def _mean_along(array: xr.DataArray, kept: list[str]) -> xr.DataArray:
    """Return the mean over all dims but those kept, without labels; as lazy as it was."""
    mean = array.astype(np.float32).mean([dim for dim in array.dims if dim not in kept])
    return mean.reset_coords(drop=True).drop_indexes(list(mean.xindexes)).drop_attrs()


def _lines(array: xr.DataArray, by: str | None) -> tuple[dict[str, xr.DataArray], str | None]:
    """Return the entries of each line, and the dim that the lines divide."""
    if by is None:
        return {"": array}, None
    if by in array.coords and array[by].ndim == 1:
        dim, labels = str(array[by].dims[0]), array[by].values.astype(str)
    elif by in array.dims:
        dim, labels = by, np.arange(array.sizes[by]).astype(str)
    else:
        there = ", ".join(str(n) for n, c in array.coords.items() if c.ndim == 1)
        raise SelectionError(f"by={by!r} is no label of {array.name!r}; there are: {there}")
    names = dict.fromkeys(labels.tolist())
    if len(names) > 20:
        raise SelectionError(f"by={by!r} has {len(names)} values; at most 20 lines are drawn")
    parts = {name: array.isel({dim: np.flatnonzero(labels == name)}) for name in names}
    return parts, dim


def _resampled(array: xr.DataArray, over: str | None, along: str | None) -> str | None:
    """Return the dim to resample; lines of one subject each are resampled over images."""
    if over == "none":
        return None
    if over is not None:
        if over not in array.dims:
            raise SelectionError(f"over={over!r} is no dim of {array.name!r}, of {array.dims}")
        return over
    subject = role_dim(array, "subject")
    if subject is not None and subject != along and array.sizes[subject] > 1:
        return subject
    has_samples = role_dim(array, "stimulus") or role_dim(array, "trial")
    return sample_dim(array) if has_samples else None
