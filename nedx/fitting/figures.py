"""Figures of a fitted model: accuracy against its ceiling, by ROI, and over time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.encoding.model import LinearEncoder, result_labels
from nedx.encoding.storing import HEAVY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(model: LinearEncoder, folder: Path) -> dict[str, str]:
    """Draw the accuracy of a model on held-out images.

    Parameters
    ----------
    model : LinearEncoder
        Its labels hold ``encoding_accuracy``.
    folder : Path
        Where the PNG files go; made if it is not there.

    Returns
    -------
    dict of str to str
        The name of each file, by its caption.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, member in model.members.items():
        labels = result_labels(member).drop_vars(HEAVY, errors="ignore").reset_coords()
        for caption, plot in _panels(labels).items():
            whose = [name] if name else []
            file = "_".join([*caption.lower().split(), *whose]) + ".png"
            figure: Any = plot(labels).figure
            figure.savefig(folder / file, dpi=150)
            drawn[" of ".join([caption, *whose])] = file
    return drawn


def _panels(labels: xr.Dataset) -> dict[str, Callable[[xr.Dataset], Axes]]:
    """Choose what can be drawn, by caption."""
    from nedx.plot.accuracy import plot_accuracy_bars, plot_accuracy_scatter
    from nedx.plot.timecourse import plot_timecourse

    has_ceiling = "noise_ceiling" in labels
    panels: dict[str, Callable[[xr.Dataset], Axes]] = {
        "Accuracy": plot_accuracy_scatter if has_ceiling else _plot_correlations
    }
    if has_ceiling and "roi_mask" in labels:
        panels["Accuracy by ROI"] = plot_accuracy_bars
    if "time" in labels["encoding_accuracy"].dims:
        panels["Accuracy over time"] = lambda ds: plot_timecourse(ds, "encoding_accuracy")
    return panels


def _plot_correlations(labels: xr.Dataset) -> Axes:
    """Draw how many targets are predicted how well, where there is no ceiling to compare with."""
    from nedx.plot.drawing import axes_or_new, named

    r = labels["encoding_accuracy"]
    known = r.values[np.isfinite(r.values)]
    ax = axes_or_new(None, (5.0, 3.6))
    ax.hist(known, 30)
    if known.size:
        ax.axvline(float(np.median(known)), color="0.2", linestyle="--")
    ax.set(xlabel=named(r), ylabel="targets")
    return ax
