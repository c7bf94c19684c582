"""Accuracy against its noise ceiling: scatter, histogram, and bars by ROI and subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.errors import SelectionError
from nedx.plot.drawing import axes_or_new, by_subject
from nedx.schema import neuroid_dim
from nedx.selection import Names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACCURACIES = ("accuracy", "encoding_accuracy")
# The published figures leave out what can hardly be predicted, but for the scatter.
MIN_CEILING = 0.1


def explained_variance(accuracy: np.ndarray, noise_ceiling: np.ndarray) -> np.ndarray:
    """Return the explained part of the explainable variance: min(1, r^2 / noise ceiling).

    Negative r counts as 0, as in NED and BERG. Gifford et al. 2024, NED, "encoding accuracy".

    Parameters
    ----------
    accuracy : ndarray
        Pearson r.
    noise_ceiling : ndarray
        Fractions of variance.

    Returns
    -------
    ndarray
        Fractions, of the same shape; NaN where the ceiling is 0 or less.
    """
    r2 = np.maximum(accuracy, 0) ** 2
    ceiling = np.where(noise_ceiling > 0, noise_ceiling, np.nan)
    return np.minimum(r2 / ceiling, 1)


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
    many = sum(len(accuracy) for accuracy, _ in groups.values()) > 2000
    for name, (accuracy, ceiling) in groups.items():
        label = name or None
        # Points by the thousand as pixels: as vectors they make files that nothing opens.
        ax.scatter(
            ceiling,
            np.maximum(accuracy, 0) ** 2,
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
    for position, (name, (accuracy, ceiling)) in enumerate(groups.items()):
        explained = _reliable(accuracy, ceiling, min_ceiling, name)
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
    subjects = {label: _means(ds, roi, min_ceiling) for label, ds in by_subject(obj)}
    names = list(dict.fromkeys(name for means in subjects.values() for name in means))
    table = np.array([[means.get(n, np.nan) for n in names] for means in subjects.values()])
    width = 0.8 / len(subjects)
    ax = axes_or_new(ax, (1.5 + len(names) * max(0.5, 0.22 * len(subjects)), 3.4))
    middles = np.arange(len(names))
    for row, (label, means) in enumerate(zip(subjects, table, strict=True)):
        offset = (row - (len(subjects) - 1) / 2) * width
        shade = (
            f"{0.35 + 0.45 * row / max(1, len(subjects) - 1):.2f}" if len(subjects) > 1 else "C0"
        )
        ax.bar(middles + offset, means, width * 0.9, color=shade, label=label or None)
    if len(subjects) > 1:
        over = np.array(
            [np.mean(c[np.isfinite(c)]) if np.isfinite(c).any() else np.nan for c in table.T]
        )
        ax.hlines(over, middles - 0.45, middles + 0.45, color="C3", linestyle="--", label="mean")
    ax.set_xticks(middles, names, rotation=45 if len(names) > 6 else 0)
    ax.set(ylim=(0, 1), ylabel="explained of explainable variance")
    if any(subjects):
        ax.legend(frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    return ax


def _pair(ds: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy and ceiling of every neuroid (and time) of one subject, float64."""
    name = next((name for name in _ACCURACIES if name in ds), None)
    missing = [] if name else ["'accuracy'"]
    missing += [] if "noise_ceiling" in ds else ["'noise_ceiling'"]
    if missing or name is None:
        raise SelectionError(
            f"no variable {' and no '.join(missing)}; add them first: ds.ned.score(), of "
            "responses with repetitions"
        )
    accuracy, ceiling = xr.broadcast(ds[name], ds["noise_ceiling"])
    return accuracy.values.astype(np.float64), ceiling.values.astype(np.float64)


def _members(ds: xr.Dataset, roi: Names | None) -> dict[str, xr.Dataset]:
    """Return the neuroids of each ROI of one subject; ROIs of which it has none are left out."""
    if "roi_mask" not in ds or "roi" not in ds.coords:
        raise SelectionError(
            "no 'roi_mask (roi, <neuroid>)' says which neuroids belong to a ROI; leave roi= out, "
            "or open the data anew with roi="
        )
    from nedx.selection import resolve

    dim = str(neuroid_dim(ds))
    wanted = [roi] if isinstance(roi, str) else list(roi or map(str, ds["roi"].values))
    known = {str(name) for name in ds["roi"].values}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        resolve(ds, roi=unknown)
    mask = ds["roi_mask"].transpose("roi", dim).values
    rows = {str(name): row for row, name in enumerate(ds["roi"].values)}
    found = {name: np.flatnonzero(mask[rows[name]]) for name in wanted}
    values = ds[[n for n in (*_ACCURACIES, "noise_ceiling") if n in ds]].load()
    return {name: values.isel({dim: own}) for name, own in found.items() if own.size}


def _by_roi(
    obj: xr.Dataset | xr.DataTree, roi: Names | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return accuracy and ceiling by ROI, of all subjects together; under "" without ROIs."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for _, ds in by_subject(obj):
        groups = {"": ds} if roi is None else _members(ds, roi)
        for name, group in groups.items():
            accuracy, ceiling = _pair(group)
            parts.setdefault(name, []).append((accuracy.ravel(), ceiling.ravel()))
    if not parts:
        raise SelectionError(f"no neuroid belongs to {roi!r}")
    return {
        name: (np.concatenate([a for a, _ in some]), np.concatenate([c for _, c in some]))
        for name, some in parts.items()
    }


def _reliable(
    accuracy: np.ndarray, ceiling: np.ndarray, min_ceiling: float, name: str
) -> np.ndarray:
    kept = (ceiling >= min_ceiling) & np.isfinite(accuracy)
    if not kept.any():
        where = f" of {name}" if name else ""
        most = np.nanmax(ceiling, initial=0)
        raise SelectionError(
            f"no neuroid{where} has a noise ceiling of {min_ceiling:g}; the highest is {most:.3g}. "
            "Type min_ceiling=0 for all"
        )
    return explained_variance(accuracy[kept], ceiling[kept])


def _means(ds: xr.Dataset, roi: Names | None, min_ceiling: float) -> dict[str, float]:
    """Return the mean explained variance of each ROI of one subject; NaN where none is left."""
    means = {}
    for name, group in _members(ds, roi).items():
        accuracy, ceiling = _pair(group)
        explained = explained_variance(accuracy, np.where(ceiling >= min_ceiling, ceiling, np.nan))
        finite = explained[np.isfinite(explained)]
        means[name] = float(finite.mean()) if finite.size else np.nan
    return means
