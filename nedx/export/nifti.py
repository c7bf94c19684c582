"""Responses of voxels as volumes in their place: NIfTI images of nibabel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

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
from nedx.schema import role_dim

if TYPE_CHECKING:
    import nibabel

# NIfTI-1 codes of what the affine leads to: the scanner, an aligned space, MNI.
_SCANNER, _ALIGNED, _MNI = 1, 2, 4
# What NIfTI-1 has room for in its description, bytes, and its code for a comment.
_DESCRIPTION, _COMMENT = 79, "comment"


def to_nifti(
    obj: xr.Dataset | xr.DataTree, variable: str | None = None, *, fill: float = np.nan
) -> nibabel.Nifti1Image | nibabel.Nifti2Image:
    """Return responses or a statistic of one subject's voxels as a NIfTI image; computes it.

    Parameters
    ----------
    obj : Dataset or DataTree
        With ``i``, ``j``, ``k`` along ``voxel`` (0-based), and ``volume_shape`` and ``affine``
        (16 numbers, row by row; to mm, RAS+) in the attributes of ``voxel``, of the Dataset, or
        as a variable ``affine (4, 4)``.
    variable : str, optional
        What to take: ``response`` by default, or for example ``noise_ceiling``. Dims
        ``([subject 1,] voxel)`` or one dim more, of images, trials, repetitions or times, which
        becomes the fourth axis.
    fill : float
        Of voxels outside of the data.

    Returns
    -------
    nibabel.Nifti1Image, or Nifti2Image of more than 32,767 volumes
        float32 ``(i, j, k[, volume])``; mm, and s along times. Unit and labels of the volumes are
        in a comment of its header, as JSON.

    Raises
    ------
    SchemaError
        If there are no voxels, or nothing says where they are.
    SelectionError
        If there are several subjects, or more dims than an image has.
    MissingExtraError
        If nibabel is not installed.
    """
    nibabel = require("nibabel", "nifti")
    ds = one_group(obj)
    array = one_subject(pick(ds, variable))
    need_neuroids(array, "voxel")
    index, shape, affine = _places(ds, array)
    extra = [str(dim) for dim in array.dims if dim != "voxel"]
    if len(extra) > 1:
        raise SelectionError(
            f"{array.name!r} has the dims {array.dims}; expected voxel and one more. "
            f"Select or average, for example ds.mean({extra[-1]!r}) or ds.isel({extra[-1]}=0)"
        )
    counts = [array.sizes[dim] for dim in extra]
    # The volume, and the values that go into it.
    refuse_large(4 * (int(np.prod([*shape, *counts])) + array.size), array.sizes)
    volume = np.full((*shape, *counts), fill, dtype=np.float32)
    volume[tuple(index.T)] = array.transpose("voxel", *extra).values
    # NIfTI-1 counts the entries of an axis in 16 bits.
    small = max(volume.shape) < 2**15
    image = (nibabel.Nifti1Image if small else nibabel.Nifti2Image)(volume, affine)
    _describe(nibabel, image, array, extra)
    return image


def _places(ds: xr.Dataset, array: xr.DataArray) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Return int64 (voxel, 3) positions in the volume, its shape, and its affine (4, 4)."""
    voxel = array.coords["voxel"].attrs if "voxel" in array.coords else {}
    shape = voxel.get("volume_shape", ds.attrs.get("volume_shape"))
    affine = voxel.get("affine", ds.attrs.get("affine"))
    if affine is None and "affine" in ds:
        affine = ds["affine"].values
    faults = [f"no coordinate {axis!r} along voxel" for axis in "ijk" if axis not in array.coords]
    faults += [
        f"no {name!r} in the attributes of voxel"
        for name, value in (("volume_shape", shape), ("affine", affine))
        if value is None
    ]
    if faults or shape is None:
        hint = "put them there: ds.voxel.attrs.update(volume_shape=[...], affine=[16 numbers])"
        raise SchemaError(f"the voxels of {array.name!r}", [*faults, hint])
    index = np.stack([array[axis].values.astype(np.int64) for axis in "ijk"], axis=1)
    size = tuple(int(n) for n in np.ravel(shape))
    matrix = np.asarray(affine, dtype=np.float64)
    if len(size) != 3 or matrix.size != 16:
        fault = f"volume_shape {size} and affine of {matrix.size} numbers; expected 3 and 16"
        raise SchemaError(f"the voxels of {array.name!r}", [fault])
    outside = (index < 0).any(axis=1) | (index >= size).any(axis=1)
    if outside.any():
        fault = f"{outside.sum()} voxels lie outside of the volume {size}; i, j, k count from 0"
        raise SchemaError(f"the voxels of {array.name!r}", [fault])
    if len(np.unique(np.ravel_multi_index(tuple(index.T), size))) < len(index):
        raise SchemaError(f"the voxels of {array.name!r}", ["two lie at the same i, j, k"])
    return index, size, matrix.reshape(4, 4)


def _describe(nibabel: Any, image: Any, array: xr.DataArray, extra: list[str]) -> None:
    """Write into the header what the volumes are."""
    space = str(array["voxel"].attrs.get("space", "")) if "voxel" in array.coords else ""
    code = _MNI if "MNI" in space else _SCANNER if space in ("T1w", "scanner") else _ALIGNED
    image.set_sform(image.affine, code)
    image.set_qform(image.affine, code)
    time = role_dim(array, "time")
    image.header.set_xyzt_units("mm", "sec" if time in extra else "unknown")
    if time in extra and array.sizes[time] > 1:
        steps = np.diff(array[time].values.astype(np.float64))
        image.header.set_zooms((*image.header.get_zooms()[:3], float(steps.mean())))
    name, unit = str(array.attrs.get("long_name", array.name)), unit_in_words(array)
    description = f"{name} ({unit})" if unit else name
    image.header["descrip"] = description.encode("ascii", "replace")[:_DESCRIPTION]
    said: dict[str, Any] = {"variable": array.name, **_json_able(array.attrs)}
    if "subject" in array.coords and array["subject"].ndim == 0:
        said["subject"] = str(array["subject"].item())
    for dim in extra:
        said["volumes"] = {k: v.tolist() for k, v in labels_along(array, dim).items()}
    comment = json.dumps(said, default=str).encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, comment))


def _json_able(attrs: Any) -> dict[str, Any]:
    return {str(key): np.asarray(v).tolist() for key, v in attrs.items() if not isinstance(v, dict)}
