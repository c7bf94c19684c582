"""What conditions of an experiment reach, beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.plot.drawing import axes_or_new, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONTROL = "control"


def plot_conditions(ds: xr.Dataset, measure: str = "top1", *, ax: Axes | None = None) -> Axes:
    """Draw a measure of clean responses, of perturbed ones, and of controls.

    Parameters
    ----------
    ds : Dataset
        ``<measure> (condition[, seed, subject])``, as `nedx.channel_experiment` has it.
    measure : str
        What to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Bars are means; points are subjects, averaged over seeds, or control sets, averaged over
        both.

    Raises
    ------
    SelectionError
        If there is no such measure of conditions.
    """
    if "condition" not in ds.dims or "condition" not in ds.get(measure, xr.DataArray(0)).dims:
        known = [str(name) for name, array in ds.items() if "condition" in array.dims]
        raise SelectionError(
            f"{measure!r} is no measure of conditions: {close_matches(measure, known)}"
        )
    values = ds[measure]
    # One seed or one subject may have been selected.
    values = values.expand_dims([dim for dim in ("seed", "subject") if dim not in values.dims])
    values = values.mean("seed")
    labels = ds["condition"].values.astype(str)
    controls = np.char.startswith(labels, _CONTROL)
    panels = {str(label): values.sel(condition=label).values for label in labels[~controls]}
    if controls.any():
        sets = values.isel(condition=np.flatnonzero(controls))
        panels["other channels"] = sets.mean("subject").values
    ax = axes_or_new(ax, (1.2 * len(panels) + 1.4, 3.6))
    for place, points in enumerate(panels.values()):
        ax.bar(place, np.mean(points), width=0.6, color="0.8")
        spread = np.linspace(-0.15, 0.15, len(points)) if len(points) > 1 else [0.0]
        ax.scatter(place + np.asarray(spread), points, s=14, color="0.2", zorder=2)
    ax.set_xticks(range(len(panels)), list(panels))
    ax.set_ylabel(named(ds[measure]))
    return ax
