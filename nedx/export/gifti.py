"""Responses of vertices as maps on a surface: GIFTI images of nibabel, one a hemisphere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx._rules import VERTICES_PER_HEMISPHERE
from nedx.errors import SchemaError, SelectionError, require
from nedx.export.pieces import (
    labels_along,
    need_neuroids,
    one_group,
    one_subject,
    pick,
    refuse_large,
    unit_in_words,
)
from nedx.metrics.repeats import labels_of

if TYPE_CHECKING:
    import nibabel

_STRUCTURES = {"L": "CortexLeft", "R": "CortexRight"}


def to_gifti(
    obj: xr.Dataset | xr.DataTree, variable: str | None = None, *, fill: float = np.nan
) -> dict[str, nibabel.GiftiImage]:
    """Return responses or a statistic of one subject's vertices as GIFTI images; computes it.

    Parameters
    ----------
    obj : Dataset or DataTree
        With ``hemisphere`` ("L", "R") and ``vertex_index`` (0-based within it) along ``vertex``,
        and ``space`` and ``density`` in the attributes of ``vertex``, for example ``"fsaverage"``
        and ``"10k"``.
    variable : str, optional
        What to take: ``response`` by default, or for example ``noise_ceiling``. Dims
        ``([subject 1,] vertex)`` or one dim more, each of whose entries becomes a map.
    fill : float
        Of vertices that are not there, for example outside of the selected ROIs.

    Returns
    -------
    dict of str to nibabel.GiftiImage
        ``"L"`` and then ``"R"``, those that there are; each map float32 over all vertices of the
        surface. To keep one: ``nibabel.save(images["L"], "sub-01_hemi-L.func.gii")``.

    Raises
    ------
    SchemaError
        If there are no vertices, or nothing says which they are.
    SelectionError
        If there are several subjects, or more dims than maps have.
    MissingExtraError
        If nibabel is not installed.
    """
    nibabel = require("nibabel", "nifti")
    array = one_subject(pick(one_group(obj), variable))
    extra = [str(dim) for dim in array.dims if dim != need_neuroids(array, "vertex")]
    if len(extra) > 1:
        raise SelectionError(
            f"{array.name!r} has the dims {array.dims}; expected vertex and one more. "
            f"Select or average, for example ds.mean({extra[-1]!r}) or ds.isel({extra[-1]}=0)"
        )
    count = vertices_per_hemisphere(array)
    maps = array.sizes[extra[0]] if extra else 1
    refuse_large(4 * (2 * count * maps + array.size), array.sizes)
    values = array.transpose(*extra, "vertex").values.reshape(maps, -1)
    names = _names(array, extra)
    found = {}
    for hemisphere, structure in _STRUCTURES.items():
        here = np.flatnonzero(labels_of(array, "hemisphere") == hemisphere)
        if here.size:
            full = np.full((maps, count), fill, dtype=np.float32)
            full[:, array["vertex_index"].values[here]] = values[:, here]
            found[hemisphere] = _image(nibabel, full, names, structure, array)
    return found


def vertices_per_hemisphere(array: xr.DataArray) -> int:
    """Return how many vertices a hemisphere of the surface has, of those here or more.

    Raises
    ------
    SchemaError
        If the labels of the vertices are absent, or the surface is not known.
    """
    faults = [
        f"no coordinate {name!r} along vertex"
        for name in ("vertex", "hemisphere", "vertex_index")
        if name not in array.coords
    ]
    attrs = array.coords["vertex"].attrs if "vertex" in array.coords else {}
    surface = (str(attrs.get("space")), str(attrs.get("density")))
    count = VERTICES_PER_HEMISPHERE.get(surface)
    if count is None:
        known = ", ".join(" ".join(names) for names in VERTICES_PER_HEMISPHERE)
        faults.append(f"space and density of vertex are {surface}; known are: {known}")
    elif not faults:
        most = int(array["vertex_index"].max())
        if most >= count:
            faults.append(f"vertex_index reaches {most}; {' '.join(surface)} has {count} vertices")
        sides = set(labels_of(array, "hemisphere")) - set(_STRUCTURES)
        if sides:
            faults.append(f"hemisphere is 'L' or 'R', not {', '.join(sorted(sides))}")
    if faults or count is None:
        raise SchemaError(f"the vertices of {array.name!r}", faults)
    return count


def _names(array: xr.DataArray, extra: list[str]) -> list[str]:
    """Name the maps by the images, by the labels of their dim, or by the variable."""
    if not extra:
        return [str(array.name)]
    labels = labels_along(array, extra[0])
    chosen = labels.get("image_id", labels.get(extra[0]))
    if chosen is None:
        return [f"{extra[0]} {position}" for position in range(array.sizes[extra[0]])]
    return [str(label) for label in chosen]


def _image(
    nibabel: Any, maps: np.ndarray, names: list[str], structure: str, array: xr.DataArray
) -> Any:
    gifti = nibabel.gifti
    told = {
        "AnatomicalStructurePrimary": structure,
        "Units": unit_in_words(array),
        "Space": str(array["vertex"].attrs.get("space", "")),
        "Comment": str(array["vertex"].attrs.get("comment", "")),
    }
    if "subject" in array.coords and array["subject"].ndim == 0:
        told["Subject"] = str(array["subject"].item())
    image = gifti.GiftiImage(meta=gifti.GiftiMetaData({k: v for k, v in told.items() if v}))
    for name, values in zip(names, maps, strict=True):
        image.add_gifti_data_array(
            gifti.GiftiDataArray(
                values,
                intent="NIFTI_INTENT_NONE",
                datatype="NIFTI_TYPE_FLOAT32",
                meta={"Name": name},
            )
        )
    return image
