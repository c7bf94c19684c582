"""The images that were retrieved beside those that were seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError
from nedx.export.pieces import one_group
from nedx.plot.drawing import axes_or_new
from nedx.schema import restore_index, role_dim, sample_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 24
_RIGHT, _WRONG = "tab:green", "none"


def plot_retrieved(
    obj: xr.Dataset | xr.DataTree,
    stimuli: xr.Dataset | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw each image that was seen, and right of it what was retrieved, best first.

    The true match has a green frame; the rank of the true match stands left of each row.

    Parameters
    ----------
    obj : Dataset or DataTree
        What `nedx.retrieve` gives, of one subject: ``candidate_id (image | trial, candidate)`` and
        ``rank``. Computed here.
    stimuli : Dataset, optional
        ``pixels (image, y, x, rgb)`` of the images seen and of those retrieved, joined by
        ``image_id``; by default those of ``obj``. Where it has no pixels of a candidate, its
        name is written; candidates that are concepts are names, too.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    SchemaError
        If there are no candidates or no pixels.
    SelectionError
        If there are too many images, or several subjects.
    """
    found = one_group(obj)
    candidates, seen, right = _checked(found)
    drawn = _thumbnails(found if stimuli is None else stimuli, [*seen, *np.unique(candidates)])
    rows, columns = candidates.shape
    ax = axes_or_new(ax, (1.1 * (columns + 1.3), 1.15 * rows + 0.4))
    ax.set_xlim(0, columns + 1.2)
    ax.set_ylim(rows, 0)
    for row in range(rows):
        _cell(ax, drawn.get(str(seen[row])), str(seen[row]), 0, row, _WRONG)
        for column, name in enumerate(candidates[row]):
            frame = _RIGHT if name == right[row] else _WRONG
            _cell(ax, drawn.get(str(name)), str(name), column + 1.2, row, frame)
    ranks = found["rank"].values.ravel()
    ax.set_yticks(np.arange(rows) + 0.5, [f"rank {rank:g}" for rank in ranks])
    labels = ["seen", *(str(place) for place in range(1, columns + 1))]
    ax.set_xticks([0.5, *(np.arange(columns) + 1.7)], labels)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _checked(found: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return candidates (row, candidate), and of each row the image seen and the right answer."""
    if "candidate_id" not in found or "rank" not in found:
        hint = "type ds.ned.retrieve(gallery).ned.plot.retrieved(images)"
        raise SchemaError("what is drawn", ["no variables 'candidate_id' and 'rank'", hint])
    sample = sample_dim(found["rank"])
    subject = role_dim(found["rank"], "subject")
    if subject is not None and found.sizes[subject] == 1:
        found = found.isel({subject: 0})
    if found["rank"].dims != (sample,):
        raise SelectionError(
            f"'rank' has the dims {found['rank'].dims}; one row an image is drawn: select, for "
            "example found.isel(subject=0)"
        )
    if found.sizes[sample] > _MOST_ROWS:
        raise SelectionError(
            f"{found.sizes[sample]} images; at most {_MOST_ROWS} are drawn. Select, for example "
            f"found.isel({sample}=slice(6))"
        )
    if "image_id" not in found.coords:
        hint = f"type found.assign_coords(image_id=({sample!r}, names))"
        raise SchemaError("what is drawn", ["no coordinate 'image_id' of the images seen", hint])
    key = found["rank"].attrs.get("joined_by", "image_id")
    candidates = found["candidate_id"].transpose(sample, "candidate").values
    return candidates, found["image_id"].values, found[key].values


def _thumbnails(stimuli: xr.Dataset, names: list[str]) -> dict[str, np.ndarray]:
    """Return the pixels (y, x, 3) of the images that there are pixels of."""
    if "pixels" not in stimuli:
        hint = "give them: found.ned.plot.retrieved(nedx.open_images('folder/'))"
        raise SchemaError("the images", ["no variable 'pixels'", hint])
    if "image_id" not in stimuli.coords:
        raise SchemaError("the images", ["no coordinate 'image_id': nothing is joined by position"])
    wanted = np.unique(np.asarray(names, dtype=str)).astype(object)
    positions = restore_index(stimuli).indexes["image_id"].get_indexer(wanted)
    pixels = stimuli["pixels"].isel(image=positions[positions >= 0]).values
    return dict(zip(wanted[positions >= 0], pixels, strict=True))


def _cell(
    ax: Axes, pixels: np.ndarray | None, name: str, left: float, row: int, frame: str
) -> None:
    from matplotlib.patches import Rectangle

    extent = (left + 0.05, left + 0.95, row + 0.95, row + 0.05)
    if pixels is not None:
        ax.imshow(pixels, extent=extent, aspect="equal", interpolation="antialiased")
    else:
        ax.text(left + 0.5, row + 0.5, name, ha="center", va="center", fontsize=7, wrap=True)
    box = Rectangle((left + 0.05, row + 0.05), 0.9, 0.9, fill=False, edgecolor=frame, linewidth=3)
    ax.add_patch(box)
