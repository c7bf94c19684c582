"""What is lost with each channel on the scalp, and with each window over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from nedx.errors import SelectionError
from nedx.export.pieces import one_group
from nedx.schema import neuroid_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_importance(obj: xr.Dataset | xr.DataTree, **options: Any) -> Axes:
    """Draw a map of importance: the scalp where it has channels, else a line over time.

    Parameters
    ----------
    obj : Dataset or DataTree
        ``importance ([subject,] [channel,] [time])``, as `nedx.insilico.importance_map` makes it;
        subjects are averaged. Of a tree, of one subject.
    **options
        Of `nedx.plot.topomap.plot_topomap`, such as ``time`` (needed where there are channels and
        times), or of `nedx.plot.timecourse.plot_timecourse`; ``ax`` of both.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If there is no ``importance``.
    SchemaError
        If nothing says where the channels are.
    MissingExtraError
        If MNE or matplotlib is not installed.
    """
    ds = one_group(obj)
    if "importance" not in ds:
        raise SelectionError(
            "there is no 'importance' to draw; type nedx.channel_importance(ds, decoder, gallery)"
        )
    if neuroid_dim(ds["importance"]) is not None:
        from nedx.plot.topomap import plot_topomap

        return plot_topomap(ds, "importance", **options)
    from nedx.plot.timecourse import plot_timecourse

    return plot_timecourse(ds, "importance", **options)
