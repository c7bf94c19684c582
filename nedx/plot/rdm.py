"""Dissimilarities of all pairs of images as a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.errors import SchemaError
from nedx.export.pieces import one_group, refuse_large
from nedx.plot.drawing import at_time, axes_or_new, colours, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Names are readable at up to this many images or groups.
_MOST_NAMES = 40


def plot_rdm(
    rdm: xr.DataArray,
    *,
    by: str | None = "category",
    time: float | tuple[float, float] | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a representational dissimilarity matrix; computes it.

    Parameters
    ----------
    rdm : DataArray (image, image_2)
        Square, as `nedx.metrics.rsa.rdm` makes it, of one subject. The diagonal is left blank.
    by : str, optional
        A label of the first dim whose values group images; the images are put in its order and
        the groups are named. Without such a label images stay as they are, and few are named by
        ``image_id``.
    time : float or (start, stop), optional
        Where there are times: the one to draw, or the window to average, in seconds.
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
        If it is not a square matrix.
    SelectionError
        If it is too large to draw, or a time is needed.
    MissingExtraError
        If matplotlib is not installed.
    """
    rdm = at_time(rdm, time).squeeze()
    if rdm.ndim != 2 or rdm.shape[0] != rdm.shape[1]:
        sizes = ", ".join(f"{dim} {size}" for dim, size in rdm.sizes.items())
        fault = f"dims {sizes}; expected a square of images: select one subject, time and model"
        raise SchemaError(f"the RDM {rdm.name!r}", [fault])
    refuse_large(4 * rdm.size, rdm.sizes, most=2**28)
    values = np.array(rdm.values, dtype=np.float64)
    dim = rdm.dims[0]
    grouped = by is not None and by in rdm.coords and rdm[by].dims == (dim,)
    labels = rdm[by].values.astype(str) if grouped else None
    if labels is not None:
        order = np.argsort(labels, kind="stable")
        values, labels = values[np.ix_(order, order)], labels[order]
    elif "image_id" in rdm.coords and rdm["image_id"].dims == (dim,):
        labels = rdm["image_id"].values.astype(str)
    np.fill_diagonal(values, np.nan)
    ax = axes_or_new(ax, (4.8, 4.0))
    chosen = colours(rdm, values)
    if chosen["cmap"] == "viridis":
        # Distances crowd far from 0: the colours are for where they are.
        finite = values[np.isfinite(values)]
        chosen |= {"vmin": float(finite.min()), "vmax": float(finite.max())} if finite.size else {}
    image = ax.imshow(values, interpolation="nearest", **chosen)
    _name(ax, labels)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label=named(rdm), shrink=0.8)
    return ax


def plot_rdm_of(obj: xr.Dataset | xr.DataTree, method: Any = "correlation", **options: Any) -> Axes:
    """Draw the RDM that a Dataset holds as ``rdm``, or that of its responses.

    Parameters
    ----------
    obj : Dataset or DataTree
        Of one subject: ``rdm (image, image_2[, time])``, or responses.
    method : str
        How to compare responses, as `nedx.metrics.rsa.rdm` takes it.
    **options
        Of `plot_rdm`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    from nedx.metrics.rsa import rdm

    ds = one_group(obj)
    found = ds["rdm"] if "rdm" in ds else rdm(ds, method)
    if "rdm" not in ds and "category" in ds.coords and ds["category"].dims == ("image",):
        found = found.assign_coords(category=("image", ds["category"].values))
    return plot_rdm(found, **options)


def _name(ax: Axes, labels: np.ndarray | None) -> None:
    """Name groups of equal neighbours in their middle, and draw lines between them."""
    ax.set_xticks([])
    ax.set_yticks([])
    if labels is None:
        return
    starts = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    edges = np.concatenate([[0], starts, [len(labels)]])
    if len(edges) - 1 > _MOST_NAMES:
        return
    middles = (edges[:-1] + edges[1:] - 1) / 2
    names = labels[edges[:-1]]
    ax.set_yticks(middles, names, fontsize="small")
    ax.set_xticks(middles, names, fontsize="small", rotation=90)
    ax.tick_params(length=0)
    if len(middles) < len(labels) / 2:
        for edge in starts:
            ax.axhline(edge - 0.5, color="w", linewidth=0.6)
            ax.axvline(edge - 0.5, color="w", linewidth=0.6)
