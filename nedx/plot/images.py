"""Responses beside the images that evoke them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    plt = require("matplotlib.pyplot", "plot")
    if responses.ndim != 2 or "image" not in responses.dims:
        raise ValueError(f"responses have dims {responses.dims}; expected image and one other")
    if len(pixels) != responses.sizes["image"]:
        raise ValueError(f"{len(pixels)} images for {responses.sizes['image']} responses")
    (row,) = (dim for dim in responses.dims if dim != "image")
    values = responses.transpose(row, "image").values
    count = len(pixels)
    if ax is None:
        _, ax = plt.subplots(figsize=(0.7 * count + 2, 0.5 * len(values) + 2), layout="constrained")
    most = float(np.nanmax(np.abs(values))) or 1.0
    drawn = ax.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most)
    labels = responses[row].values if row in responses.coords else np.arange(len(values))
    ax.set_yticks(range(len(values)), [str(label) for label in labels])
    ax.set_xticks([])
    for position, image in enumerate(pixels):
        thumbnail = ax.inset_axes((position / count, 1.02, 1 / count, 0.9 / len(values) + 0.25))
        thumbnail.imshow(image)
        thumbnail.axis("off")
    units = responses.attrs.get("units", "")
    if units == "1":
        units = str(responses.attrs.get("normalization", ""))
    name = responses.attrs.get("long_name", "response")
    ax.figure.colorbar(drawn, ax=ax, label=f"{name} ({units})" if units else name, shrink=0.8)
    return ax
