"""Time courses with the interval that a bootstrap over subjects or images gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.export.pieces import one_group, pick
from nedx.plot.drawing import axes_or_new, named
from nedx.schema import role_dim, sample_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLOCK_RESAMPLES = 500


def bootstrap_interval(
    values: np.ndarray, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval of a mean (Efron 1979, Annals of Statistics 7:1).

    Parameters
    ----------
    values : ndarray, (case, ...)
        What is resampled with replacement are the cases.
    n_resamples : int
        How many times.
    confidence : float
        How often the interval should hold the truth.
    seed : int
        Of the resamples.

    Returns
    -------
    low, high : ndarray of float64, (...)
    """
    rng = np.random.default_rng(seed)
    cases = values.reshape(len(values), -1).astype(np.float64)
    means = []
    for start in range(0, n_resamples, _BLOCK_RESAMPLES):
        count = min(_BLOCK_RESAMPLES, n_resamples - start)
        # How often each case is drawn, which is all that a mean needs to know.
        drawn = rng.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=count)
        means.append(drawn @ cases / len(cases))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def plot_timecourse(
    obj: xr.Dataset | xr.DataTree,
    variable: str | None = None,
    *,
    by: str | None = None,
    over: str | None = None,
    confidence: float = 0.95,
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
    confidence : float
        Of the interval.
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
    for label, values in lines.items():
        (line,) = ax.plot(times, values.mean(0) if resampled else values, label=label or None)
        if resampled and len(values) > 1:
            low, high = bootstrap_interval(
                values, n_resamples=n_resamples, confidence=confidence, seed=seed
            )
            ax.fill_between(times, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel=named(array[time]), ylabel=named(array), xlim=(times[0], times[-1]))
    if by is not None:
        ax.legend(title=by, frameon=False)
    return ax


def _mean_along(array: xr.DataArray, kept: list[str]) -> Any:
    """Return the mean over all dims but those kept, in their order; as lazy as it was."""
    mean = array.astype(np.float32).mean([dim for dim in array.dims if dim not in kept])
    return mean.transpose(*kept).data


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
