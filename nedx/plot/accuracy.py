"""Accuracy against its noise ceiling: scatter, histogram, and bars by ROI and subject."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import dask
import numpy as np
import xarray as xr

from nedx.errors import SelectionError, close_matches
from nedx.metrics.accuracy import explained_variance
from nedx.plot.drawing import axes_or_new, by_subject
from nedx.schema import neuroid_dim
from nedx.selection import Names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACCURACIES = ("accuracy", "encoding_accuracy")
# The published figures leave out what can hardly be predicted, but for the scatter.
MIN_CEILING = 0.1

_Pair: TypeAlias = tuple[xr.DataArray, xr.DataArray]


def plot_accuracy_scatter(
    obj: xr.Dataset | xr.DataTree, roi: Names | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw r2 of each neuroid against its noise ceiling; a perfect model lies on the diagonal.

    Parameters
    ----------
    obj : Dataset or DataTree
        With ``accuracy`` or ``encoding_accuracy`` (Pearson r) and ``noise_ceiling`` (fraction of
        variance) along the same dims, of one subject or more: ``ds.ned.score()`` adds them.
        Negative r counts as 0.
    roi : str or sequence of str, optional
        ROIs to draw, each in a colour of its own; all neuroids in one by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SelectionError
        If accuracy, ceiling or a ROI is not there.
    MissingExtraError
        If matplotlib is not installed.
    """
    groups = _by_roi(obj, roi)
    ax = axes_or_new(ax, (4.5, 4.2))
    many = sum(accuracy.size for accuracy, _ in groups.values()) > 2000
    for name, (accuracy, ceiling) in groups.items():
        label = name or None
        # Points by the thousand as pixels: as vectors they make files that nothing opens.
        ax.scatter(
            ceiling.values,
            accuracy.clip(min=0).values ** 2,
            s=3 if many else 12,
            alpha=0.3 if many else 0.7,
            linewidths=0,
            label=label,
            rasterized=True,
        )
    ax.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="noise ceiling (fraction of variance)", ylabel="accuracy (r²)")
    if any(groups):
        ax.legend(frameon=False, markerscale=4 if many else 1.5, loc="upper left")
    return ax


def plot_accuracy_histogram(
    obj: xr.Dataset | xr.DataTree,
    roi: Names | None = None,
    *,
    min_ceiling: float = MIN_CEILING,
    bins: int = 30,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many neuroids have how much of their explainable variance explained.

    Parameters
    ----------
    obj, roi, ax
        As `plot_accuracy_scatter` takes them.
    min_ceiling : float
        Neuroids of a lower noise ceiling are left out, as in the published figures.
    bins : int
        Bars from 0 to 1.

    Returns
    -------
    matplotlib.axes.Axes
        The dashed lines are medians.

    Raises
    ------
    SelectionError
        If accuracy, ceiling or a ROI is not there, or no neuroid reaches ``min_ceiling``.
    """
    groups = _by_roi(obj, roi)
    ax = axes_or_new(ax, (5.0, 3.6))
    edges = np.linspace(0, 1, bins + 1).tolist()
    for position, (name, pair) in enumerate(groups.items()):
        explained = _explained(pair, min_ceiling)
        if not explained.size:
            whose = f" of {name}" if name else ""
            raise SelectionError(
                f"no neuroid{whose} has an accuracy and a noise ceiling of {min_ceiling:g}; the "
                f"highest is {float(pair[1].max()):.3g}. Type min_ceiling=0 for all"
            )
        colour, filled = f"C{position}", len(groups) == 1
        ax.hist(
            explained,
            edges,
            histtype="stepfilled" if filled else "step",
            color=colour,
            linewidth=1.5,
            label=name or None,
        )
        ax.axvline(float(np.median(explained)), color="0.2" if filled else colour, linestyle="--")
    ax.set(xlim=(0, 1), xlabel="explained of explainable variance", ylabel="neuroids")
    if any(groups):
        ax.legend(frameon=False)
    return ax


def plot_accuracy_bars(
    obj: xr.Dataset | xr.DataTree,
    roi: Names | None = None,
    *,
    min_ceiling: float = MIN_CEILING,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mean explained variance of each ROI: a bar a subject, a line for their mean.

    Parameters
    ----------
    obj, ax
        As `plot_accuracy_scatter` takes them.
    roi : str or sequence of str, optional
        ROIs to draw; all by default.
    min_ceiling : float
        Neuroids of a lower noise ceiling are left out of the means.

    Returns
    -------
    matplotlib.axes.Axes
        A subject without neuroids in a ROI has no bar there.

    Raises
    ------
    SelectionError
        If accuracy, ceiling, ``roi_mask`` or a ROI is not there.
    """
    subjects = {}
    for label, ds in by_subject(obj):
        explained = {n: _explained(_pair(d), min_ceiling) for n, d in _members(ds, roi).items()}
        subjects[label] = {name: v.mean() if v.size else np.nan for name, v in explained.items()}
    names = list(dict.fromkeys(name for means in subjects.values() for name in means))
    table = np.array([[means.get(n, np.nan) for n in names] for means in subjects.values()])
    width = 0.8 / len(subjects)
    ax = axes_or_new(ax, (1.5 + len(names) * max(0.5, 0.22 * len(subjects)), 3.4))
    middles, greys = np.arange(len(names)), [f"{g:.2f}" for g in np.linspace(0.3, 0.8, len(table))]
    for row, (label, means) in enumerate(zip(subjects, table, strict=True)):
        offset = (row - (len(subjects) - 1) / 2) * width
        ax.bar(middles + offset, means, width * 0.9, color=greys[row], label=label or None)
    if len(subjects) > 1:
        over = xr.DataArray(table, dims=("subject", "roi")).mean("subject")
        ax.hlines(over, middles - 0.45, middles + 0.45, color="C3", linestyle="--", label="mean")
    ax.set_xticks(middles, names, rotation=45 if len(names) > 6 else 0)
    ax.set(ylim=(0, 1), ylabel="explained of explainable variance")
    if any(subjects):
        ax.legend(frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    return ax


def _pair(ds: xr.Dataset) -> _Pair:
    """Return accuracy and ceiling of every neuroid (and time) of one subject."""
    name = next((name for name in _ACCURACIES if name in ds), None)
    missing = [] if name else ["'accuracy'"]
    missing += [] if "noise_ceiling" in ds else ["'noise_ceiling'"]
    if missing or name is None:
        raise SelectionError(
            f"no variable {' and no '.join(missing)}; add them first: ds.ned.score(), of "
            "responses with repetitions"
        )
    # Labels of every vertex and ROI are not needed, and would be read.
    pair = (ds[each].reset_coords(drop=True) for each in (name, "noise_ceiling"))
    accuracy, ceiling = dask.compute(*pair)
    return xr.broadcast(accuracy, ceiling)


def _members(ds: xr.Dataset, roi: Names | None) -> dict[str, xr.Dataset]:
    """Return the neuroids of each ROI of one subject; ROIs of which it has none are left out."""
    if "roi_mask" not in ds or "roi" not in ds.coords:
        raise SelectionError(
            "no 'roi_mask (roi, <neuroid>)' says which neuroids belong to a ROI; open the data "
            "anew with roi=, or draw all neuroids: ds.ned.plot.accuracy_histogram()"
        )
    dim = str(neuroid_dim(ds))
    rows = {str(name): row for row, name in enumerate(ds["roi"].values)}
    wanted = [roi] if isinstance(roi, str) else list(roi or rows)
    for name in wanted:
        if name not in rows:
            raise SelectionError(f"unknown ROI {name!r}: {close_matches(name, rows)}")
    mask = ds["roi_mask"].transpose("roi", dim).values
    found = {name: np.flatnonzero(mask[rows[name]]) for name in wanted}
    return {name: ds.isel({dim: own}) for name, own in found.items() if own.size}


def _by_roi(obj: xr.Dataset | xr.DataTree, roi: Names | None) -> dict[str, _Pair]:
    """Return accuracy and ceiling by ROI, of all subjects together; under "" without ROIs."""
    parts: dict[str, list[_Pair]] = {}
    for _, ds in by_subject(obj):
        groups = {"": ds} if roi is None else _members(ds, roi)
        for name, group in groups.items():
            parts.setdefault(name, []).append(_pair(group))
    if not parts:
        raise SelectionError(f"no neuroid belongs to {roi!r}")
    return {
        name: (_joined(a for a, _ in some), _joined(c for _, c in some))
        for name, some in parts.items()
    }


def _joined(arrays: Iterable[xr.DataArray]) -> xr.DataArray:
    """Put the values of several subjects one after another, without labels."""
    return xr.DataArray(np.concatenate([a.values.ravel() for a in arrays]), dims="neuroid")


def _explained(pair: _Pair, min_ceiling: float) -> np.ndarray:
    """Return the explained variance of what can be predicted, in one row; as published."""
    accuracy, ceiling = pair
    kept = (ceiling >= min_ceiling) & (ceiling > 0)
    values = explained_variance(accuracy, ceiling, as_published=True).values[kept.values]
    return values[np.isfinite(values)]
