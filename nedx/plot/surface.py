"""Responses of vertices on the inflated cortex of fsaverage5, which nilearn brings along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from nedx.errors import SchemaError, SelectionError, require
from nedx.export.gifti import vertices_per_hemisphere
from nedx.export.pieces import need_neuroids, one_group
from nedx.plot.drawing import at_time, averaged, axes_or_new, colours, named
from nedx.schema import role_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_VERTICES = 10_242
"""Vertices of a hemisphere of fsaverage5: the first of every finer fsaverage."""

View = Literal["lateral", "medial", "dorsal", "ventral", "anterior", "posterior"]

_ZOOM = 1.4
_SIDES = {"L": "left", "R": "right"}
# How much the lengths of places may differ for them to lie on one sphere, of the length.
_ROUND = 0.01
# About how far neighbours among the vertices of fsaverage5 lie apart on the unit sphere.
_SPACING = float(np.sqrt(4 * np.pi / N_VERTICES))


def plot_surface(
    obj: xr.Dataset | xr.DataTree,
    variable: str | None = None,
    *,
    hemisphere: Literal["L", "R"] = "L",
    view: View = "lateral",
    time: float | tuple[float, float] | None = None,
    threshold: float | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw values on the inflated cortex, averaged over subjects, images and repetitions.

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses, accuracies, ceilings ``(..., vertex)`` on fsaverage, fsaverage6 or fsaverage5
        (densities 164k, 41k and 10k), of which the vertices of fsaverage5 are drawn. They are found
        by ``vertex_index``, or at density 10k by their places ``x``, ``y``, ``z`` on the sphere
        where these are there: not everyone numbers them as FreeSurfer does. Of a tree, of one
        subject.
    variable : str, optional
        What to draw; ``response`` by default.
    hemisphere : {"L", "R"}
        Which half.
    view : str
        From where.
    time : float or (start, stop), optional
        Where there are times: the one to draw, or the window to average, in seconds.
    threshold : float, optional
        Values nearer to 0 are not drawn.
    colorbar : bool
        Whether to draw a scale beside it.
    ax : mpl_toolkits.mplot3d.Axes3D, optional
        Where to draw, with ``projection="3d"``; a new figure by default.

    Returns
    -------
    mpl_toolkits.mplot3d.Axes3D
        Vertices that are not there show the folds of the cortex instead.

    Raises
    ------
    SchemaError
        If there are no vertices of fsaverage of this hemisphere, or the axes are flat.
    SelectionError
        If a time is needed, or not there.
    MissingExtraError
        If nilearn or matplotlib is not installed.
    """
    plotting = require("nilearn.plotting", "surface")
    ds = one_group(obj)
    array = averaged(ds, variable, ("vertex", role_dim(ds, "time")))
    need_neuroids(array, "vertex")
    if hemisphere not in _SIDES:
        raise SelectionError(f"hemisphere is 'L' or 'R', not {hemisphere!r}")
    if ax is not None and ax.name != "3d":
        raise SchemaError("the axes", ["a surface needs 3d: figure.add_subplot(projection='3d')"])
    mesh = _fsaverage5()
    side = _SIDES[hemisphere]
    values = on_fsaverage5(at_time(array, time), hemisphere)
    solid: Any = axes_or_new(ax, (4.6, 4.0), projection="3d")
    drawn = colours(array, values)
    plotting.plot_surf(
        mesh[f"infl_{side}"],
        values,
        bg_map=mesh[f"sulc_{side}"],
        hemi=side,
        view=view,
        avg_method="mean",
        bg_on_data=True,
        threshold=threshold,
        colorbar=False,
        axes=solid,
        figure=solid.figure,
        **drawn,
    )
    # nilearn leaves a wide margin.
    solid.set_box_aspect(None, zoom=_ZOOM)
    if colorbar:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        scale = Normalize(drawn["vmin"], drawn["vmax"])
        solid.figure.colorbar(
            ScalarMappable(scale, drawn["cmap"]), ax=solid, label=named(array), shrink=0.6
        )
    return solid


def on_fsaverage5(array: xr.DataArray, hemisphere: str) -> np.ndarray:
    """Return the values at the vertices of fsaverage5, as FreeSurfer numbers them.

    Each division of the icosahedron keeps the vertices there were, first and in their order:
    vertex i of fsaverage5 is vertex i of fsaverage (Fischl et al. 1999, Human Brain Mapping 8:272).

    Parameters
    ----------
    array : DataArray (vertex,)
        With the labels of `plot_surface`.
    hemisphere : {"L", "R"}
        Which half.

    Returns
    -------
    ndarray of float64, (10242,)
        NaN where there is no value.

    Raises
    ------
    SchemaError
        If the vertices are none of fsaverage, or none is of this hemisphere.
    """
    count = vertices_per_hemisphere(array)
    space, density = (str(array["vertex"].attrs.get(key)) for key in ("space", "density"))
    if space != "fsaverage" or count < N_VERTICES:
        fault = f"vertices of {space} {density}; expected fsaverage 164k, 41k or 10k"
        raise SchemaError(f"{array.name!r}", [fault])
    here = np.flatnonzero(array["hemisphere"].values.astype(str) == hemisphere)
    if not here.size:
        raise SchemaError(f"{array.name!r}", [f"no vertex of the hemisphere {hemisphere!r}"])
    source, positions = _matches(array, here, _SIDES[hemisphere], count)
    values = np.full(N_VERTICES, np.nan)
    values[positions] = array.values[here[source]]
    return values


def _matches(
    array: xr.DataArray, here: np.ndarray, side: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the vertices here gives its value to which vertex of fsaverage5."""
    index = array["vertex_index"].values[here].astype(np.int64)
    source = np.flatnonzero(index < N_VERTICES)
    if count > N_VERTICES or not all(axis in array.coords for axis in "xyz"):
        return source, index[source]
    places = np.stack([array[axis].values[here] for axis in "xyz"], axis=1).astype(np.float64)
    lengths = np.linalg.norm(places, axis=1)
    if np.ptp(lengths) > _ROUND * lengths.mean():
        return source, index[source]
    from scipy.spatial import cKDTree

    surface = require("nilearn.surface", "surface")
    sphere = surface.load_surf_mesh(_fsaverage5()[f"sphere_{side}"]).coordinates
    sphere = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    distance, nearest = cKDTree(places / lengths[:, None]).query(sphere)
    near = np.flatnonzero(distance < _SPACING)
    return nearest[near], near


def _fsaverage5() -> Any:
    return require("nilearn.datasets", "surface").fetch_surf_fsaverage("fsaverage5")
