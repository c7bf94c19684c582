"""Figures of a fitted model: accuracy against its ceiling, and over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nedx.encoding.model import LinearEncoder
from nedx.errors import require

_DOTS = 20_000


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
    backend = require("matplotlib.backends.backend_agg", "plot")
    figure_of = require("matplotlib.figure", "plot").Figure
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, member in model.members.items():
        panels = {"accuracy": _against_ceiling, "time course": _over_time}
        for what, panel in panels.items():
            if what == "time course" and "time" not in member["encoding_accuracy"].dims:
                continue
            figure = figure_of(figsize=(4.5, 4), layout="constrained")
            backend.FigureCanvasAgg(figure)
            panel(figure.subplots(), member)
            words = [what.replace(" ", "_"), *([name] if name else [])]
            file = f"{'_'.join(words)}.png"
            figure.savefig(folder / file, dpi=150)
            drawn[" of ".join([f"{what[0].upper()}{what[1:]}", *([name] if name else [])])] = file
    return drawn


def _against_ceiling(ax: Any, member: xr.Dataset) -> None:
    """Draw r of each target against what the noise allows, or how r is distributed."""
    r = member["encoding_accuracy"].values.reshape(-1)
    if "noise_ceiling" not in member.coords:
        ax.hist(r[np.isfinite(r)], bins=50)
        ax.set(xlabel="accuracy (Pearson r)", ylabel="targets")
        return
    ceiling = member["noise_ceiling"].transpose(*member["encoding_accuracy"].dims).values
    ceiling = np.sqrt(np.clip(ceiling, 0, None)).reshape(-1)
    step = max(1, len(r) // _DOTS)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    ax.plot(ceiling[::step], r[::step], ".", markersize=2, alpha=0.5, rasterized=True)
    ax.set(xlabel="ceiling of r (root of the noise ceiling)", ylabel="accuracy (Pearson r)")


def _over_time(ax: Any, member: xr.Dataset) -> None:
    """Draw the mean accuracy over channels and subjects at each time, beside its ceiling."""
    for name, label in (("encoding_accuracy", "accuracy"), ("noise_ceiling", "ceiling")):
        if name not in member.coords or "time" not in member[name].dims:
            continue
        values = member[name]
        if name == "noise_ceiling":
            values = values.clip(0) ** 0.5
        mean = values.mean([dim for dim in values.dims if dim != "time"])
        ax.plot(member["time"].values, mean.values, label=label)
    ax.legend(frameon=False)
    ax.set(xlabel="time (s)", ylabel="Pearson r, mean over channels")
