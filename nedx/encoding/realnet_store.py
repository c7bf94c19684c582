"""ReAlnets on disk: the tensors of each subject's network, and the labels of what they predict."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from pydantic import ValidationError

from nedx.compute.references import ModelRef
from nedx.decoding.storing import State, hash_states, read_state
from nedx.encoding.loading import LOADER
from nedx.encoding.opening import open_labels
from nedx.encoding.realnet_recipe import ReAlnetArchitecture
from nedx.encoding.recipe import EncoderRecipe
from nedx.encoding.storing import COMPRESSORS, storable_labels, write_whole
from nedx.errors import ModelError
from nedx.schema import SCHEMA_VERSION
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, RecordingStore

if TYPE_CHECKING:
    from nedx.encoding.realnet_model import ReAlnetModel
    from nedx.encoding.realnet_network import ReAlnet

MODEL_TYPE = "realnet"
_NETWORKS = "networks"
_READOUT = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class NetworkPart:
    """The network of one subject.

    Parameters
    ----------
    name : str
        Which.
    """

    name: str

    def read(self, ref: ModelRef, device: str) -> ReAlnet:
        """Read its tensors and build it."""
        from nedx.encoding.realnet_network import build

        architecture = ReAlnetArchitecture.model_validate_json(ref.recipe)
        return build(architecture, read_state(ref, self.name)).to(device)


def selected_states(ref: ModelRef, names: Sequence[str], outputs: np.ndarray) -> dict[str, State]:
    """Read the tensors of some networks, and of their readout some outputs.

    Parameters
    ----------
    ref : ModelRef
        The store.
    names : sequence of str
        Which networks.
    outputs : ndarray of int64, (output,)
        Which outputs, in their order.

    Returns
    -------
    dict of str to dict
    """
    states = {name: read_state(ref, name) for name in names}
    return {
        name: {**state, **{key: state[key][outputs] for key in _READOUT}}
        for name, state in states.items()
    }


def write_realnet(
    place: str | Path | Location,
    recipe: EncoderRecipe,
    architecture: ReAlnetArchitecture,
    labels: xr.Dataset,
    states: Mapping[str, State],
) -> Location:
    """Write ReAlnets, whole or not at all on a local disk.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    recipe : EncoderRecipe
        Images, units and origin.
    architecture : ReAlnetArchitecture
        Of all networks.
    labels : Dataset
        As `nedx.encoding.realnet_model.ReAlnetModel` takes them.
    states : mapping of str to dict
        The tensors of each network.

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """

    def write(location: Location) -> None:
        store = RecordingStore(location.zarr_store(read_only=False))
        with warnings.catch_warnings():
            # Zarr says of consolidated metadata and of strings that v3 does not specify them yet.
            warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
            root = zarr.create_group(store, zarr_format=3)
            for name, state in states.items():
                _write_state(root.require_group(f"{_NETWORKS}/{name}"), state)
            storable_labels(labels).to_zarr(store, mode="a", zarr_format=3, consolidated=False)
            root.attrs.put(
                {
                    "nedx_kind": "model",
                    "nedx_schema_version": SCHEMA_VERSION,
                    "nedx_status": "complete",
                    "model_type": MODEL_TYPE,
                    "recipe": json.loads(recipe.model_dump_json()),
                    "architecture": json.loads(architecture.model_dump_json()),
                    "weights_sha256": hash_states(states),
                }
            )
            zarr.consolidate_metadata(store, zarr_format=3)
        location.write(MANIFEST, Manifest(store.written).to_bytes())

    return write_whole(place, write)


def open_realnet(
    location: Location, recipe: EncoderRecipe, attrs: Mapping[str, Any]
) -> ReAlnetModel:
    """Open stored ReAlnets; weights are read when they are used.

    Parameters
    ----------
    location : Location
        The store.
    recipe : EncoderRecipe
        Its recipe.
    attrs : mapping
        The attributes of its root.

    Raises
    ------
    ModelError
        If its architecture is not valid.
    """
    from nedx.encoding.realnet_model import ReAlnetModel, placed

    try:
        architecture = ReAlnetArchitecture.model_validate(attrs["architecture"])
    except (ValidationError, KeyError) as error:
        raise ModelError(
            f"the architecture of the model at {location.url} is not valid: {error}"
        ) from error
    canonical = architecture.model_dump_json()
    ref = ModelRef(LOADER, location, canonical, str(attrs["weights_sha256"]))
    return ReAlnetModel(placed(open_labels(location, "")), recipe, architecture, ref)


def _write_state(group: zarr.Group, state: State) -> None:
    for key, values in state.items():
        array = group.create_array(
            key,
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(max(1, size) for size in values.shape),
            compressors=COMPRESSORS,
            config={"write_empty_chunks": True},
        )
        array[...] = values
