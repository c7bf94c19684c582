"""ROIs and parcellations of NSD: label volumes or surfaces, and the names of their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import xarray as xr

from nedx.errors import SourceError
from nedx.sources.nifti import VolumeFile, open_volumes, same_space
from nedx.store.location import Location

ROIS = (
    *("prf-visualrois", "floc-faces", "floc-bodies", "floc-places", "floc-words"),
    *("streams", "nsdgeneral"),
)
"""Families whose ROIs are selected by name."""
ATLASES = ("streams", "HCP_MMP1", "Kastner2015", "corticalsulc")
"""Exclusive parcellations."""
MERGED = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d")}
"""ROIs made of two of ``prf-visualrois``, as publications have them."""


def roi_folder(subject: str, space: str) -> str:
    """Return the folder of the label files of a space."""
    if space == "fsaverage":
        return "nsddata/freesurfer/fsaverage/label"
    return f"nsddata/ppdata/{subject}/{space}/roi"


def find_families(root: Location, subject: str, space: str) -> dict[str, tuple[str, ...]]:
    """Return the keys of the label files that are there, by family: one, or left and right."""
    keys = root.list(roi_folder(subject, space))
    found: dict[str, tuple[str, ...]] = {}
    for family in dict.fromkeys((*ROIS, *ATLASES)):
        names = [f"{family}.nii.gz"]
        if space == "fsaverage":
            names = [f"lh.{family}.mgz", f"rh.{family}.mgz"]
        mine = [key for name in names for key in keys if PurePosixPath(key).name == name]
        if len(mine) == len(names):
            found[family] = tuple(mine)
    return found


def read_labels(
    root: Location, keys: tuple[str, ...], reference: VolumeFile | None
) -> tuple[np.ndarray, VolumeFile]:
    """Read the numbers of a family, and return the file of the first hemisphere or the volume.

    Parameters
    ----------
    root : Location
    keys : tuple of str
        One volume, or the left and the right surface.
    reference : VolumeFile or None
        Whose voxels they must be.

    Returns
    -------
    labels : int16 array (i, j, k), or (vertex, 1, 1)
    file : VolumeFile

    Raises
    ------
    SourceError
        If they are of other voxels, in shape or affine.
    """
    files = [open_volumes(root, key) for key in keys]
    if reference is not None and (faults := same_space(reference, files[0])):
        raise SourceError("; ".join(faults))
    labels = np.concatenate([file.volume() for file in files])
    return np.rint(labels).astype(np.int16), files[0]


def read_names(root: Location, subject: str, family: str) -> dict[int, str]:
    """Return the names of the numbers of a family, from ``<family>.mgz.ctab``.

    Numbers of 0 and below are no region. A family without a file has one region, itself.

    Raises
    ------
    SourceError
        If a line of the file is no number and a name.
    """
    for folder in (f"freesurfer/{subject}/label", "freesurfer/fsaverage/label"):
        key = f"nsddata/{folder}/{family}.mgz.ctab"
        if root.exists(key):
            break
    else:
        return {1: family}
    names = {}
    for line in root.read(key).decode().splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not words[0].lstrip("-").isdigit():
            raise SourceError(f"{root.url}/{key} has the line {line!r}, expected '1 V1v'")
        if int(words[0]) > 0:
            names[int(words[0])] = words[1]
    return names


def roi_coords(
    labels: Mapping[str, np.ndarray], names: Mapping[str, Mapping[int, str]], neuroid: str
) -> xr.Dataset:
    """Make the coordinates of ROIs and parcellations of labels that are narrowed already.

    Parameters
    ----------
    labels : mapping of family to int16 array (neuroid,)
    names : mapping of family to names of numbers
    neuroid : str
        ``"voxel"`` or ``"vertex"``.

    Returns
    -------
    Dataset
        ``roi``, ``roi_group (roi)``, ``roi_mask (roi, <neuroid>)`` and ``atlas_<name>``.

    Raises
    ------
    SourceError
        If a family holds a number without a name.
    """
    masks: dict[str, np.ndarray] = {}
    groups: dict[str, str] = {}
    coords: dict[str, object] = {}
    for family, numbers in labels.items():
        there = names[family]
        if unknown := sorted(set(np.unique(numbers[numbers > 0]).tolist()) - set(there)):
            raise SourceError(
                f"the labels of {family} hold {unknown[:3]}, which {family}.mgz.ctab does not "
                f"name: fetch nsddata/freesurfer/*/label/{family}.mgz.ctab"
            )
        if family in ROIS:
            found = {name: numbers == number for number, name in there.items()}
            for merged, parts in MERGED.items():
                if family == "prf-visualrois" and set(parts) <= set(found):
                    found[merged] = found[parts[0]] | found[parts[1]]
            masks.update(found)
            groups.update(dict.fromkeys(found, family))
        if family in ATLASES:
            meanings = " ".join(name.replace(" ", "_") for name in there.values())
            about = {"flag_values": list(there), "flag_meanings": meanings}
            coords[f"atlas_{family}"] = (neuroid, np.maximum(numbers, 0).astype(np.int16), about)
    if masks:
        coords["roi"] = np.array(list(masks), dtype=object)
        coords["roi_group"] = ("roi", np.array([groups[name] for name in masks], dtype=object))
        coords["roi_mask"] = (("roi", neuroid), np.stack(list(masks.values())))
    return xr.Dataset(coords=coords)
