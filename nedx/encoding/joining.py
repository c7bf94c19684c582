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


def join_models(places: Mapping[str, Location]) -> LinearEncoder:
    """Open stored models of one subject each as one model with a subject dimension.

    Nothing is copied: each subject's weights are read from its own store. A projection without
    subject dimension is that of all: images are projected once.

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
    labels = _joined_labels(models, places)
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
    member = first.members[ROOT]
    shape = [len(models) if dim == "subject" else n for dim, n in member["readout"].sizes.items()]
    stands_in = np.broadcast_to(np.float32(0), shape)
    projections = {}
    for key in HEAVY[:2]:
        each = [m.members[ROOT][key].reset_coords(drop=True) for m in models.values()]
        projections[key] = each[0] if shared else xr.concat(each, "subject")
    ds = labels.assign({**projections, "readout": (member["readout"].dims, stands_in)})
    ds = lazy_weights(ref, ROOT, ds, member.sizes["component"])
    attrs = {"layer_widths": first.layer_widths, **hashes}
    return LinearEncoder._opened({ROOT: ds}, first.recipe, ref, attrs)


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
        for dim in target_dims(mine):
            if dim not in theirs.dims or not theirs.get_index(dim).equals(mine.get_index(dim)):
                faults.append(f"{other} predicts other {dim}s than {name}")
    if faults:
        raise ModelError("these models cannot be used as one: " + "; ".join(faults))
