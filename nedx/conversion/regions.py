"""Which neuroids of two subjects are mapped onto each other: all, by hemisphere, by area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import xarray as xr

from nedx.errors import ModelError, close_matches
from nedx.metrics.repeats import labels_of
from nedx.schema import neuroid_dim

Method = Literal["full", "whole", "subarea"]
METHODS = ("full", "whole", "subarea")
AREAS = ("V1", "V2", "V3", "hV4", "HVC")
"""Of the published converters (Ho et al. 2023, NeuroImage 271:120007)."""

_SIDES = ("L", "R")


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the map.

    Attributes
    ----------
    name : str
        ``"all"``, ``"LH"``, or ``"LH_V1"``.
    source, target : ndarray of int64
        Positions of its neuroids in each subject.
    """

    name: str
    source: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)


def regions(
    names: tuple[str, str],
    source: xr.Dataset,
    target: xr.Dataset,
    method: Method,
    areas: Sequence[str] = AREAS,
) -> list[Region]:
    """Return the parts of the map from one subject to another, in order of precedence.

    Parameters
    ----------
    names : tuple of str
        Labels of the two, for errors.
    source, target : Dataset
        With ``hemisphere (neuroid)`` of ``"L"`` and ``"R"``, or ``roi_mask (roi, neuroid)`` with
        ROIs such as ``ROI_LH_VC``, ``LH_V1`` or ``V1``.
    method : {"full", "whole", "subarea"}
        All onto all; each hemisphere onto its own; each area of a hemisphere onto its own.
    areas : sequence of str
        Of ``"subarea"``.

    Raises
    ------
    ModelError
        If a hemisphere or an area is missing in one of them, or neuroids are in none.
    """
    sizes = [ds.sizes[str(neuroid_dim(ds["response"]))] for ds in (source, target)]
    if method == "full":
        return [Region("all", np.arange(sizes[0]), np.arange(sizes[1]))]
    wanted: tuple[str | None, ...] = (None,)
    if method == "subarea":
        wanted = (areas,) if isinstance(areas, str) else tuple(areas)
        if not wanted:
            raise ModelError("areas= names none; type areas such as ['V1', 'V2']")
    found = [
        {(side, area): _members(name, ds, side, area) for side in _SIDES for area in wanted}
        for name, ds in zip(names, (source, target), strict=True)
    ]
    for name, ds, masks in zip(names, (source, target), found, strict=True):
        _check(name, ds, masks, method)
    parts = []
    for side, area in found[0]:
        one, other = (np.flatnonzero(masks[side, area]) for masks in found)
        parts.append(Region(_label(side, area), one, other))
    return parts


def merged(
    parts: Sequence[Region], blocks: Sequence[np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
    """Put the maps of regions into one; where they overlap the first that is not 0 counts.

    Parameters
    ----------
    parts : sequence of Region
    blocks : sequence of ndarray (source, target)
        The map of each.
    shape : tuple of int
        All neuroids of source and target.

    Returns
    -------
    ndarray of float32, (source, target)
        0 where no region is.
    """
    if len(parts) == 1 and blocks[0].shape == shape:
        return blocks[0].astype(np.float32, copy=False)
    whole = np.zeros(shape, np.float32)
    for part, block in zip(parts, blocks, strict=True):
        where = np.ix_(part.source, part.target)
        before = whole[where]
        whole[where] = np.where(before != 0, before, block)
    return whole


def _label(side: str, area: str | None) -> str:
    return f"{side}H" if area is None else f"{side}H_{area}"


def _members(name: str, ds: xr.Dataset, side: str, area: str | None) -> np.ndarray:
    """Return which neuroids are of a side and an area, bool (neuroid,)."""
    masks = _masks(ds)
    own = [f"ROI_{side}H_{area or 'VC'}", f"{side}H_{area or 'VC'}"]
    given = next((masks[roi] for roi in own if roi in masks), None)
    if given is not None:
        return given
    if "hemisphere" not in ds.coords:
        raise ModelError(
            f"{name} says of its neuroids neither the 'hemisphere' nor ROIs such as {own[0]!r}; "
            "give one, or fit with method='full'"
        )
    there: np.ndarray = labels_of(ds, "hemisphere") == side
    if area is None:
        return there
    within = next((masks[roi] for roi in (f"ROI_{area}", area) if roi in masks), None)
    if within is None:
        raise ModelError(
            f"{name} has no ROI {area!r}: {close_matches(area, masks)} Choose areas that all "
            "subjects have, such as areas=['V1', 'V2']"
        )
    return there & within


def _masks(ds: xr.Dataset) -> dict[str, np.ndarray]:
    if "roi_mask" not in ds or "roi" not in ds.coords:
        return {}
    dim = str(neuroid_dim(ds["response"]))
    mask = ds["roi_mask"]
    others = [d for d in mask.dims if d not in ("roi", dim)]
    values = mask.any(others).transpose("roi", dim).values
    return dict(zip(map(str, ds["roi"].values), values.astype(bool), strict=True))


def _check(
    name: str, ds: xr.Dataset, masks: dict[tuple[str, str | None], np.ndarray], method: str
) -> None:
    empty = [_label(side, area) for (side, area), mask in masks.items() if not mask.any()]
    if empty:
        raise ModelError(
            f"{name} has no neuroids in {', '.join(empty)}, so that nothing can be mapped there; "
            "leave these areas out for all subjects (areas=), or fit with method='full'"
        )
    outside = ~np.any(list(masks.values()), axis=0)
    if outside.any():
        within = ", ".join(_label(side, area) for side, area in masks)
        raise ModelError(
            f"{outside.sum()} of {len(outside)} neuroids of {name} are in none of {within}, which "
            f"method={method!r} maps. Select these first, as by ds.ned.roi([...]), or fit with "
            "method='full'"
        )
