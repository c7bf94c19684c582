"""Stored models of single subjects, used as one model of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import xarray as xr

from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.encoding.model import LinearEncoder, lazy_weights
from nedx.encoding.opening import open_linear
from nedx.encoding.storing import HEAVY, PREFIX, target_dims
from nedx.encoding.weights import ROOT
from nedx.errors import ModelError
from nedx.store.location import Location

_FILLED = {"roi": {"roi_mask": False}, "known_image": {"known_partition": "unseen"}}
"""Dims along which subjects may differ, and what stands where one has nothing."""
_OWN = ("voxel", "unit")
"""Neuroids that each subject may have of their own."""


def join_models(places: Mapping[str, Location]) -> LinearEncoder:
    """Open stored models of one subject each as one model of all.

    Nothing is copied: each subject's weights are read from its own store. A projection without
    subject dimension is that of all: images are projected once.

    Subjects who share their neuroids get a subject dimension, those with neuroids of their own
    are members of a ragged model.

    Parameters
    ----------
    places : mapping of str to Location
        The store of each subject.

    Returns
    -------
    LinearEncoder

    Raises
    ------
    ModelError
        If the models do not predict the same neuroids, or were made by other recipes.
    """
    models = {subject: open_linear(place) for subject, place in places.items()}
    first = next(iter(models.values()))
    if len(models) == 1:
        return first
    _check_alike(models)
    digests = {
        name: hashlib.sha256("".join(m.hashes()[name] for m in models.values()).encode())
        for name in first.hashes()
    }
    hashes = {name: digest.hexdigest() for name, digest in digests.items()}
    shared = "subject" not in first.members[ROOT]["projection"].dims
    if shared:
        # What was kept of one subject's components holds for all.
        hashes["projection_sha256"] = first.hashes()["projection_sha256"]
    ref = ModelRef(LOADER, first.ref.location, first.ref.recipe, hashes["weights_sha256"])
    attrs = {"layer_widths": first.layer_widths, **hashes}
    if not _on_one_grid(models):
        if shared:
            raise ModelError(
                "these models cannot be used as one: their subjects have neuroids of their own and "
                f"a projection that is to be for all. Open them one by one: {', '.join(models)}"
            )
        ragged = {name: _own_member(ref, name, m, places[name]) for name, m in models.items()}
        return LinearEncoder._opened(ragged, first.recipe, ref, attrs)
    try:
        labels = _joined_labels(models, places)
    except xr.MergeError as error:
        raise ModelError(
            f"the labels of {', '.join(models)} differ, so that they share no axis: {error}. Open "
            "them one by one"
        ) from error
    member = first.members[ROOT]
    shape = [len(models) if dim == "subject" else n for dim, n in member["readout"].sizes.items()]
    stands_in = np.broadcast_to(np.float32(0), shape)
    projections = {}
    for key in HEAVY[:2]:
        each = [m.members[ROOT][key].reset_coords(drop=True) for m in models.values()]
        projections[key] = each[0] if shared else xr.concat(each, "subject")
    ds = labels.assign({**projections, "readout": (member["readout"].dims, stands_in)})
    ds = lazy_weights(ref, ROOT, ds, member.sizes["component"])
    return LinearEncoder._opened({ROOT: ds}, first.recipe, ref, attrs)


def _on_one_grid(models: Mapping[str, LinearEncoder]) -> bool:
    """Say whether all predict the same neuroids at the same places."""
    first, *others = (m.members[ROOT] for m in models.values())
    neuroid = target_dims(first)[0]
    if neuroid not in _OWN:
        return True
    mine = _of_neuroids(first, neuroid)
    return all(
        neuroid in other.dims
        and other.get_index(neuroid).equals(first.get_index(neuroid))
        and _of_neuroids(other, neuroid).equals(mine)
        for other in others
    )


def _of_neuroids(ds: xr.Dataset, neuroid: str) -> xr.Dataset:
    """Return the labels of neuroids that do not belong to one subject."""
    kept = [
        name
        for name in ds.coords
        if ds[name].dims == (neuroid,) and not str(name).startswith(PREFIX)
    ]
    return ds[kept].load()


def _own_member(ref: ModelRef, subject: str, model: LinearEncoder, place: Location) -> xr.Dataset:
    """Return one subject's weights and labels, without a subject dimension."""
    ds = model.members[ROOT].isel(subject=0)
    stands_in = np.broadcast_to(np.float32(0), ds["readout"].shape)
    ds = ds.assign(readout=(ds["readout"].dims, stands_in)).drop_vars(["intercept", "subject"])
    ds = ds.assign_coords({f"{PREFIX}place": place.url})
    return lazy_weights(ref, subject, ds, ds.sizes["component"])


def _joined_labels(
    models: Mapping[str, LinearEncoder], places: Mapping[str, Location]
) -> xr.Dataset:
    """Stack the labels; those that are the same for all subjects stay as they are."""
    stacked = []
    for subject, model in models.items():
        ds = model.members[ROOT]
        ds = ds.drop_vars([name for name in HEAVY if name in ds])
        rows = ds[f"{PREFIX}row"]
        if "subject" not in rows.dims:
            ds[f"{PREFIX}row"] = rows.expand_dims("subject")
        place = np.array([places[subject].url], dtype=object)
        stacked.append(ds.assign_coords({f"{PREFIX}place": ("subject", place)}).reset_coords())
    for dim in _FILLED:
        known = [ds.get_index(dim) for ds in stacked if dim in ds.dims]
        union = list(dict.fromkeys(label for index in known for label in index))
        if known:
            stacked = [ds.reindex({dim: union}, fill_value=_FILLED[dim]) for ds in stacked]
    joined = xr.concat(
        stacked,
        dim="subject",
        data_vars="minimal",
        coords="minimal",
        join="exact",
        compat="equals",
        combine_attrs="override",
    )
    return joined.set_coords(list(joined.data_vars))


def _check_alike(models: Mapping[str, LinearEncoder]) -> None:
    """Refuse models that cannot share axes, naming every fault."""
    (name, first), *others = models.items()
    faults = []
    for other, model in others:
        if model.recipe != first.recipe:
            faults.append(f"{other} was made by another recipe than {name}")
        mine, theirs = (m.members[ROOT] for m in (first, model))
        if "subject" not in mine["projection"].dims and (
            model.hashes()["projection_sha256"] != first.hashes()["projection_sha256"]
        ):
            faults.append(f"{other} has another projection than {name}, which is to be for all")
        # Voxels are a subject's own; a montage, and further axes, are to be the same.
        for dim in (d for d in target_dims(mine) if d not in _OWN):
            if dim not in theirs.dims or not theirs.get_index(dim).equals(mine.get_index(dim)):
                faults.append(f"{other} predicts other {dim}s than {name}")
    if faults:
        raise ModelError("these models cannot be used as one: " + "; ".join(faults))
