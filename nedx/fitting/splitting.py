"""Which images are fitted to, and which are held out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from nedx.encoding.estimators.measured import members
from nedx.errors import ModelError
from nedx.fitting.parts import Split
from nedx.schema import sample_dim

Labelled = xr.Dataset | xr.DataTree

MIN_TEST = 3
"""Images that must be held out: over two of them every correlation is 1 or -1."""


def split(responses: Labelled, how: Split) -> tuple[Labelled, Labelled]:
    """Part responses by image; reads labels only.

    Parameters
    ----------
    responses : Dataset or DataTree
        With ``image_id``.
    how : Split
        As the recipe says.

    Returns
    -------
    tuple of Dataset or DataTree
        To fit to, and held out.

    Raises
    ------
    ModelError
        If a coordinate is not there, a part is empty, an image is in both or in several groups, or
        too few are held out to judge by.
    """
    parts = members(responses)
    held_out = None if how.test_fraction is None else _drawn(parts, how)
    train: dict[str, xr.Dataset] = {}
    test: dict[str, xr.Dataset] = {}
    for name, ds in parts.items():
        dim = sample_dim(ds)
        ids = _ids(ds)
        if held_out is None:
            kinds = _along(ds, how.coordinate).astype(str)
            masks = np.isin(kinds, how.train), np.isin(kinds, how.test)
        else:
            held = np.isin(ids, held_out)
            masks = ~held, held
        _check(name, ids, masks, how)
        for part, mask in zip((train, test), masks, strict=True):
            # What the data call their parts may differ from the split that was asked for.
            chosen = ds.isel({dim: np.flatnonzero(mask)})
            part[name] = chosen.drop_vars("partition", errors="ignore")
    return _joined(train), _joined(test)


def _drawn(parts: Mapping[str, xr.Dataset], how: Split) -> np.ndarray:
    """Draw the ids of the images that are held out, the same for all subjects."""
    pairs = [
        (_ids(ds), _along(ds, how.groups) if how.groups else _ids(ds)) for ds in parts.values()
    ]
    ids = np.concatenate([pair[0] for pair in pairs])
    groups = np.concatenate([pair[1] for pair in pairs]).astype(str)
    ids, first, which = np.unique(ids, return_index=True, return_inverse=True)
    apart = np.flatnonzero(groups != groups[first][which])
    if len(apart):
        one = ids[which[apart[0]]]
        found = sorted(set(groups[ids[which] == one].tolist()))
        raise ModelError(
            f"image {str(one)!r} is in several groups of {how.groups!r}: {found[:5]}, which "
            "cannot be held out whole; type a coordinate that is the same for all its trials"
        )
    groups = groups[first]
    names, counts = np.unique(groups, return_counts=True)
    order = np.random.default_rng(how.seed).permutation(len(names))
    wanted = (how.test_fraction or 0) * len(ids)
    enough = int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1
    return ids[np.isin(groups, names[order[:enough]])]


def _check(name: str, ids: np.ndarray, masks: tuple[np.ndarray, np.ndarray], how: Split) -> None:
    where = f"{name}: " if name else ""
    for mask, part, values in zip(masks, ("train", "test"), (how.train, how.test), strict=True):
        if not mask.any():
            said = f"{how.coordinate!r} in {list(values)}" if how.test_fraction is None else part
            raise ModelError(
                f"{where}no image is in the {part} part ({said}); see split: in the recipe"
            )
    both = np.intersect1d(ids[masks[0]], ids[masks[1]])
    if len(both):
        raise ModelError(
            f"{where}{len(both)} images are fitted to and held out, first {str(both[0])!r}: all "
            "trials of an image belong to one part"
        )
    count = len(np.unique(ids[masks[1]]))
    if count < MIN_TEST:
        raise ModelError(
            f"{where}{count} images are held out; a correlation over them says nothing, expected "
            f"{MIN_TEST} or more. Hold out more of them under split: in the recipe"
        )


def _ids(ds: xr.Dataset) -> np.ndarray:
    if "image_id" not in ds.coords:
        raise ModelError("the responses have no image_id to pair them with the images by")
    return np.asarray(ds["image_id"].values.astype(str))


def _along(ds: xr.Dataset, name: str) -> np.ndarray:
    dim = sample_dim(ds)
    if name not in ds.coords or ds[name].dims != (dim,):
        along = [str(key) for key, coord in ds.coords.items() if coord.dims == (dim,)]
        raise ModelError(
            f"the responses have no coordinate {name!r} of {dim}s, only {along}. Type one of "
            "these as split: {coordinate: ...}, or split: {test_fraction: 0.1}"
        )
    return np.asarray(ds[name].values)


def _joined(parts: Mapping[str, xr.Dataset]) -> Labelled:
    if set(parts) == {""}:
        return parts[""]
    return xr.DataTree.from_dict({f"/{name}": ds for name, ds in parts.items()})
