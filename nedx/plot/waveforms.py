"""Predicted beside measured waveforms, of one image or of the mean of many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask
import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.export.pieces import one_group, pick
from nedx.metrics.repeats import labels_of
from nedx.plot.drawing import axes_or_new, named
from nedx.schema import neuroid_dim, role_dim, sample_dim
from nedx.selection import Names, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURED, _PREDICTED = "response", "response_predicted"
_MOST = 10


def plot_waveforms(
    obj: xr.Dataset | xr.DataTree,
    image: str | int | None = None,
    *,
    channel: Names | None = None,
    by: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw measured (solid) and predicted (dashed) responses over time, with their correlation.

    Parameters
    ----------
    obj : Dataset or DataTree
        ``response`` and ``response_predicted (..., time)``, as `nedx.encode` makes them of a
        Dataset that holds measured responses; of a tree, of one subject. All other dims are
        averaged.
    image : str or int, optional
        ``image_id`` or position of one image; the mean of all by default.
    channel : str or sequence of str, optional
        Channels or groups of them, as in `nedx.open`; all by default.
    by : {"channel"}, optional
        Draw two lines for each of at most 10 channels; else their mean.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where there are repetitions, a band shows the standard error of the measured mean.

    Raises
    ------
    SelectionError
        If one of both responses, the time axis, the image or a channel is not there.
    MissingExtraError
        If matplotlib is not installed.
    """
    ds = _chosen(one_group(obj), image, channel)
    measured, predicted = (pick(ds, name) for name in (_MEASURED, _PREDICTED))
    time = role_dim(measured, "time")
    if time is None or time not in predicted.dims:
        raise SelectionError(f"responses of dims {measured.dims} have no time axis to draw along")
    lines = _lines(measured, predicted, time, _divided(ds, by))
    (lines,) = dask.compute(lines)
    ax = axes_or_new(ax, (6.0, 3.4))
    times = measured[time].values
    ax.axhline(0, color="0.8", linewidth=0.8)
    for label, line in lines.items():
        _draw(ax, times, label, *line)
    ax.set(xlabel=named(measured[time]), ylabel=named(measured), xlim=(times[0], times[-1]))
    # Two entries for each channel would cover the lines.
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if by else {}
    ax.legend(frameon=False, **beside)
    return ax


def _draw(
    ax: Axes,
    times: np.ndarray,
    label: str,
    mean: xr.DataArray,
    error: xr.DataArray | None,
    guess: xr.DataArray,
) -> None:
    """Draw one measured waveform, the band of its standard error, and the predicted one."""
    (line,) = ax.plot(times, mean.values, label=f"{label} measured".strip())
    colour = line.get_color()
    r = _correlation(mean.values, guess.values)
    said = f"{label} predicted, r = {r:.2f}".strip()
    ax.plot(times, guess.values, color=colour, linestyle="--", label=said)
    if error is not None:
        low, high = mean.values - error.values, mean.values + error.values
        ax.fill_between(times, low, high, color=colour, alpha=0.2, linewidth=0)


def _chosen(ds: xr.Dataset, image: str | int | None, channel: Names | None) -> xr.Dataset:
    """Return one image or all, of some channels, lazily."""
    missing = [name for name in (_MEASURED, _PREDICTED) if name not in ds]
    if missing:
        raise SelectionError(
            f"there is no {missing[0]!r} to draw. Type: measured_with_pixels.ned.encode(model)"
        )
    ds = ds if channel is None else select(ds, channel=channel)
    if image is None:
        return ds
    dim = sample_dim(ds)
    if isinstance(image, str):
        names = labels_of(ds, "image_id") if "image_id" in ds.coords else np.empty(0, str)
        rows = np.flatnonzero(names == image)
        if not rows.size:
            raise SelectionError(f"there is no image {image!r}: {close_matches(image, names)}")
        return ds.isel({dim: rows})
    if not -ds.sizes[dim] <= image < ds.sizes[dim]:
        raise SelectionError(f"there are {ds.sizes[dim]} images, none at position {image}")
    return ds.isel({dim: [image]})


def _divided(ds: xr.Dataset, by: str | None) -> str | None:
    """Return the dim that has lines of its own for each entry."""
    if by is None:
        return None
    dim = neuroid_dim(ds)
    if by != "channel" or dim != "channel":
        raise SelectionError(f"by={by!r}: lines are divided by 'channel', these have {dim!r}")
    if ds.sizes[dim] > _MOST:
        raise SelectionError(
            f"{ds.sizes[dim]} channels; at most {_MOST} are drawn. Type: channel=['Oz', 'POz']"
        )
    return dim


def _lines(
    measured: xr.DataArray, predicted: xr.DataArray, time: str, by: str | None
) -> dict[str, tuple[xr.DataArray, xr.DataArray | None, xr.DataArray]]:
    """Return by label the measured mean, its standard error if known, and the predicted mean."""
    repetition = role_dim(measured, "repetition")
    found = {}
    for position in range(measured.sizes[by]) if by else [0]:
        label = str(measured[by].values[position]) if by else ""
        one, other = (each.isel({by: position}) if by else each for each in (measured, predicted))
        kept = [dim for dim in (repetition, time) if dim]
        trials = one.astype(np.float64).mean([dim for dim in one.dims if dim not in kept])
        error = None
        if repetition is not None and one.sizes[repetition] > 1:
            error = trials.std(repetition, ddof=1) / np.sqrt(trials.count(repetition))
        mean = trials if repetition is None else trials.mean(repetition)
        there = one.notnull() if repetition is None else one.notnull().any(repetition)
        # What was not measured is left out of both means.
        guess = other.astype(np.float64).where(there)
        guess = guess.mean([dim for dim in guess.dims if dim != time])
        found[label] = mean, error, guess
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlate two waveforms; NaN where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else float("nan")
