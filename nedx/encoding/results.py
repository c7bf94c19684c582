"""What encode hands back: responses with their labels, and a record of what made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from nedx.compute.devices import resolve_device
from nedx.encoding.kinds import Encoder
from nedx.encoding.model import result_labels
from nedx.encoding.partition import partition_coords
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import HEAVY
from nedx.schema import restore_index


def assembled(
    ds: xr.Dataset,
    model: Encoder,
    responses: Mapping[str, xr.Variable],
    recipe: EncoderRecipe,
) -> xr.Dataset | xr.DataTree:
    """Put responses beside the images.

    Parameters
    ----------
    ds : Dataset
        The images.
    model : LinearEncoder, FwrfEncoder or ReAlnetModel
        As selected.
    responses : mapping of str to Variable
        Of each member of the model, with `provenance` as attributes.
    recipe : EncoderRecipe
        As this call wanted it.

    Returns
    -------
    Dataset or DataTree
        A DataTree where there are several members.
    """
    attrs = next(iter(responses.values())).attrs
    seen = partition_coords(ds, model)
    labels = {name: _result_coords(member) for name, member in model.members.items()}
    if len(responses) == 1:
        ((name, response),) = responses.items()
        added = "response_predicted" if "response" in ds else "response"
        out = ds.assign_coords({**labels[name].coords, **seen[name]}).assign({added: response})
        out = out.assign_coords(subject=_label(name)) if name else out
        return _recorded(out, recipe, attrs)
    # Children inherit coordinates that are indices; which images they were trained on is theirs.
    root = restore_index(_recorded(ds, recipe, attrs)) if "image_id" in ds.coords else ds
    given = {"partition": root["partition"].variable} if "partition" in root.coords else {}
    children = {
        f"/{name}": xr.Dataset({"response": response}, attrs=root.attrs).assign_coords(
            {**labels[name].coords, **given, **seen[name], "subject": _label(name)}
        )
        for name, response in responses.items()
    }
    return xr.DataTree.from_dict({"/": root, **children})


def provenance(model: Encoder, recipe: EncoderRecipe, device: str) -> dict[str, Any]:
    """Return what made a response, as attributes."""
    from nedx.stimuli.preprocessing import policy

    backbone = recipe.backbone
    attrs = {
        "long_name": "predicted response",
        "units": recipe.units,
        "source": "synthetic",
        "normalization": recipe.normalization,
        "normalization_scope": recipe.normalization_scope,
        "transform": recipe.transform,
        "model_id": recipe.model_id,
        "model_version": recipe.version,
        "model_training_source": recipe.training_source,
        "weights_sha256": model.weights_sha256,
        "backbone": backbone.model_dump_json(),
        "image_preprocessing": json.dumps(policy(backbone.policy).describe()),
        "batch_size": backbone.batch_size,
        "compute_dtype": backbone.precision,
        "device_kind": resolve_device(device).partition(":")[0],
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }
    return {name: value for name, value in attrs.items() if value is not None}


_IDENTITY = (
    *("source", "model_id", "model_version", "weights_sha256", "code_version", "torch_version"),
    *("compute_dtype", "device_kind", "image_preprocessing"),
)


def _recorded(ds: xr.Dataset, recipe: EncoderRecipe, made_by: dict[str, Any]) -> xr.Dataset:
    """Say of a Dataset what it holds; beside a measured response only the variable says it."""
    described = {
        "modality": recipe.modality,
        "species": recipe.species,
        "dataset": recipe.dataset,
        "license": recipe.license,
    }
    known = {name: value for name, value in described.items() if value is not None}
    if "response_predicted" in ds:
        return ds.assign_attrs({**known, **ds.attrs})
    identity = {name: made_by[name] for name in _IDENTITY if name in made_by}
    title = f"Responses predicted by {recipe.model_id}"
    return ds.assign_attrs({**known, **ds.attrs, **identity, "title": title})


def _result_coords(member: xr.Dataset) -> xr.Dataset:
    """Return the labels that travel to results."""
    labels = result_labels(member)
    foreign = {"feature", "component", "known_image"}
    dropped = [n for n in labels.variables if n in HEAVY or foreign & set(labels[n].dims)]
    return labels.drop_vars(dropped)


def _label(subject: str) -> xr.Variable:
    """Return the label of one subject; numpy would give it a fixed width."""
    return xr.Variable((), np.array(subject, dtype=object))
