"""Responses at the sensors as a map of the scalp, drawn by MNE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError, require
from nedx.export.mne import SI_UNITS, make_info
from nedx.export.pieces import need_neuroids, one_group
from nedx.plot.drawing import at_time, averaged, axes_or_new, colours, named
from nedx.schema import role_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_topomap(
    obj: xr.Dataset | xr.DataTree,
    variable: str | None = None,
    *,
    time: float | tuple[float, float] | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a map of the scalp, averaged over subjects, images and repetitions.

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses, accuracies, ceilings ``(..., channel[, time])``, with sensors placed as
        `nedx.export.mne.to_mne` has them; of a tree, of one subject.
    variable : str, optional
        What to draw; ``response`` by default.
    time : float or (start, stop), optional
        The time to draw, or the window to average, in seconds; needed where there are several.
    colorbar : bool
        Whether to draw a scale beside it.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SchemaError
        If there are no channels, or nothing says where they are.
    SelectionError
        If a time is needed, or not there.
    MissingExtraError
        If MNE or matplotlib is not installed.
    """
    mne = require("mne", "mne")
    ds = one_group(obj)
    array = averaged(ds, variable, ("channel", role_dim(ds, "time")))
    need_neuroids(array, "channel")
    if array.sizes["channel"] < 4:
        raise SelectionError(f"{array.sizes['channel']} channels; a map needs 4 or more")
    info = make_info(array, 1.0, units=_unit(array))
    values = at_time(array, time).values.astype(np.float64)
    if not np.isfinite(values).all():
        wrong = ", ".join(array["channel"].values[~np.isfinite(values)].astype(str)[:8])
        raise SchemaError(f"{array.name!r}", [f"values of {wrong} are not finite; drop them"])
    ax = axes_or_new(ax, (4.0, 3.6))
    drawn = colours(array, values)
    limits = (drawn["vmin"], drawn["vmax"])
    image, _ = mne.viz.plot_topomap(
        values, info, cmap=drawn["cmap"], vlim=limits, axes=ax, show=False, sensors=True
    )
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label=named(array), shrink=0.7)
    if time is not None:
        spelled = (
            f"{time:g} s" if isinstance(time, int | float) else f"{time[0]:g} to {time[1]:g} s"
        )
        ax.set_title(spelled)
    return ax


def _unit(array: xr.DataArray) -> str | None:
    """Return a unit of the type of the channels for what has none, as accuracies have."""
    if array.attrs.get("units") in SI_UNITS:
        return None
    labels = array["channel_type"].values.astype(str) if "channel_type" in array.coords else ["eeg"]
    return {"mag": "fT", "grad": "fT cm-1"}.get(str(labels[0]), "uV")
