"""Responses beside the images that evoke them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.export.pieces import one_group, pick
from nedx.plot.drawing import at_time, axes_or_new, colours, named
from nedx.schema import restore_index, role_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_IMAGES = 64
_MOST_ROWS = 64


def plot_image_responses(
    responses: xr.DataArray, pixels: np.ndarray, ax: Axes | None = None
) -> Axes:
    """Draw a map of responses, image by row label, with the images above their columns.

    Parameters
    ----------
    responses : DataArray (row, image) or (image, row)
        For example the mean responses of ROIs; the other dimension than ``image`` labels rows.
        Computed here.
    pixels : ndarray (image, y, x, 3), uint8
        The images, in the same order.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    if responses.ndim != 2 or "image" not in responses.dims:
        raise ValueError(f"responses have dims {responses.dims}; expected image and one other")
    if len(pixels) != responses.sizes["image"]:
        raise ValueError(f"{len(pixels)} images for {responses.sizes['image']} responses")
    (row,) = (dim for dim in responses.dims if dim != "image")
    values = responses.transpose(row, "image").values
    count = len(pixels)
    ax = axes_or_new(ax, (0.7 * count + 2, 0.5 * len(values) + 2))
    drawn = ax.imshow(values, aspect="auto", **colours(responses, values))
    labels = responses[row].values if row in responses.coords else np.arange(len(values))
    ax.set_yticks(range(len(values)), [str(label) for label in labels])
    ax.set_xticks([])
    for position, image in enumerate(pixels):
        thumbnail = ax.inset_axes((position / count, 1.02, 1 / count, 0.9 / len(values) + 0.25))
        thumbnail.imshow(image)
        thumbnail.axis("off")
        thumbnail.set_anchor("S")
    ax.figure.colorbar(drawn, ax=ax, label=named(responses), shrink=0.8)
    return ax


def plot_images(
    obj: xr.Dataset | xr.DataTree,
    stimuli: xr.Dataset | None = None,
    variable: str | None = None,
    *,
    time: float | tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw responses, averaged over subjects and repetitions, below the images that evoke them.

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses of a few images ``(..., image, row[, time])``: rows are channels, units or ROIs
        (``ds.ned.roi_mean(["V1", "FFA-1"])``). Of a tree, of one subject.
    stimuli : Dataset, optional
        ``pixels (image, y, x, rgb)`` of these images and maybe others, joined by ``image_id``; by
        default those of the Dataset itself.
    variable : str, optional
        What to draw; ``response`` by default.
    time : float or (start, stop), optional
        Where there are times: the one to draw, or the window to average, in seconds.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SchemaError
        If there are no pixels.
    SelectionError
        If there are too many images or rows, images without pixels, or a time is needed.
    """
    ds = one_group(obj)
    array = at_time(pick(ds, variable), time)
    over = [dim for role in ("subject", "repetition") if (dim := role_dim(array, role))]
    mean = array.astype(np.float32).mean(over)
    mean.attrs = dict(array.attrs)
    if mean.ndim == 1 and "image" in mean.dims:
        mean = mean.expand_dims(str(array.name))
    if mean.ndim != 2 or "image" not in mean.dims:
        raise SelectionError(
            f"{array.name!r} has the dims {array.dims}; expected image and one of rows. Average "
            "ROIs with ds.ned.roi_mean([...]), or select"
        )
    rows = mean.size // max(1, mean.sizes["image"])
    if mean.sizes["image"] > _MOST_IMAGES or rows > _MOST_ROWS:
        raise SelectionError(
            f"{mean.sizes['image']} images and {rows} rows; at most {_MOST_IMAGES} and "
            f"{_MOST_ROWS} are drawn. Select, for example ds.isel(image=slice(12)), or average "
            "ROIs with ds.ned.roi_mean(['V1', 'V2'])"
        )
    return plot_image_responses(mean, _pixels(ds, stimuli), ax=ax)


def _pixels(ds: xr.Dataset, stimuli: xr.Dataset | None) -> np.ndarray:
    """Return the images of the responses, uint8 (image, y, x, 3)."""
    source = ds if stimuli is None else stimuli
    if "pixels" not in source:
        hint = "give them: ds.ned.plot.images(nedx.open_images('folder/'))"
        raise SchemaError("the images", ["no variable 'pixels'", hint])
    pixels = source["pixels"]
    if stimuli is not None:
        positions = restore_index(stimuli).indexes["image_id"].get_indexer(ds["image_id"].values)
        missing = ds["image_id"].values[positions < 0]
        if missing.size:
            named_ids = ", ".join(map(str, missing[:5]))
            raise SelectionError(f"no pixels of {missing.size} images: {named_ids}")
        pixels = pixels.isel(image=positions)
    return np.asarray(pixels.values)
