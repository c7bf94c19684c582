"""Dimensions by role, subjects by label, and the index that stores do not keep."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import TypeVar

import numpy as np
import xarray as xr

from nedx.errors import SelectionError

ROLES: dict[str, tuple[str, ...]] = {
    "stimulus": ("image",),
    "trial": ("trial",),
    "repetition": ("repetition",),
    "subject": ("subject",),
    "neuroid": ("vertex", "voxel", "parcel", "channel", "unit"),
    "time": ("time",),
}
"""The roles a dimension can have, and the names that imply each."""

NEUROIDS = ROLES["neuroid"]

_ROLE_OF_NAME = {name: role for role, names in ROLES.items() for name in names}
_SUBJECT = re.compile(r"(?:sub-|subj-?|s-)?0*(\d+)", re.IGNORECASE)
_BIDS_LABEL = re.compile(r"(?:sub-)?([A-Za-z0-9]+)")

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


def role_of(obj: xr.Dataset | xr.DataArray, dim: Hashable) -> str | None:
    """Return the role of a dimension: the attribute ``nedx_role``, or what its name implies."""
    if dim in obj.coords and "nedx_role" in obj.coords[dim].attrs:
        return str(obj.coords[dim].attrs["nedx_role"])
    return _ROLE_OF_NAME.get(str(dim))


def role_dim(ds: xr.Dataset | xr.DataArray, role: str) -> str | None:
    """Find the dimension that has a role.

    Parameters
    ----------
    ds : Dataset or DataArray
        Where to look.
    role : str
        One of `ROLES`: ``"stimulus"``, ``"trial"``, ``"repetition"``, ``"subject"``,
        ``"neuroid"`` or ``"time"``.

    Returns
    -------
    str or None
        The name of the dimension; None where there is none.
    """
    if role not in ROLES:
        raise ValueError(f"role is one of {', '.join(ROLES)}, not {role!r}")
    for dim in ds.dims:
        if role_of(ds, dim) == role:
            return str(dim)
    return None


def neuroid_dim(ds: xr.Dataset | xr.DataArray) -> str | None:
    """Return the neuroid axis: vertex, voxel, parcel, channel or unit; None without one."""
    return role_dim(ds, "neuroid")


def sample_dim(ds: xr.Dataset | xr.DataArray) -> str:
    """Return the dimension of the samples, ``"image"`` or ``"trial"`` (by role).

    Raises
    ------
    SelectionError
        If there is neither.
    """
    dim = role_dim(ds, "stimulus") or role_dim(ds, "trial")
    if dim is None:
        found = ", ".join(str(d) for d in ds.dims) or "none"
        raise SelectionError(f"no dimension 'image' or 'trial'; the dimensions are: {found}")
    return dim


def subject_label(subject: str | int) -> str:
    """Return the BIDS label of a subject.

    Parameters
    ----------
    subject : str or int
        ``1``, ``"1"``, ``"01"``, ``"sub-01"`` and ``"subj01"`` all mean ``"sub-01"``. A number
        is the number in the label, never a position. Names such as ``"monkeyF"`` are kept.

    Returns
    -------
    str

    Raises
    ------
    SelectionError
        If it is no subject.
    """
    if isinstance(subject, bool | np.bool_):
        raise SelectionError(f"a subject is a number or a label such as 'sub-01', not {subject!r}")
    text = str(subject).strip()
    if match := _SUBJECT.fullmatch(text):
        return f"sub-{int(match[1]):02d}"
    if match := _BIDS_LABEL.fullmatch(text):
        return f"sub-{match[1]}"
    raise SelectionError(f"a subject is a number or a label such as 'sub-01', not {subject!r}")


def restore_index(ds: Labelled) -> Labelled:
    """Make ``image_id`` the index of its dimension; stores do not keep indexes.

    Parameters
    ----------
    ds : Dataset or DataArray
        With or without a coordinate ``image_id (image | trial)``.

    Returns
    -------
    Dataset or DataArray
        Indexed by ``image_id``; unchanged where there is none, or where it is the index already.
    """
    if "image_id" not in ds.coords or "image_id" in ds.xindexes:
        return ds
    if ds.coords["image_id"].ndim != 1:
        return ds
    return ds.set_xindex("image_id")
