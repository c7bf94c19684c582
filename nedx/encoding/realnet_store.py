"""ReAlnets on disk: the tensors of each subject's network, and the labels of what they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nedx.compute.references import ModelRef
from nedx.encoding.loading import LOADER
from nedx.encoding.network_storing import NETWORKS, State, hash_states, read_state, write_networks
from nedx.encoding.realnet_recipe import ReAlnetRecipe
from nedx.store.location import Location
from nedx.store.models import open_labels, stored_recipe

if TYPE_CHECKING:
    from nedx.encoding.realnet_model import ReAlnetModel
    from nedx.encoding.realnet_network import ReAlnet

MODEL_TYPE = "realnet"
READOUT = {"fc.weight", "fc.bias"}
"""The tensors that have a row for each output."""


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

        architecture = ReAlnetRecipe.model_validate_json(ref.recipe).architecture
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
    return {name: with_outputs(read_state(ref, name), outputs) for name in names}


def with_outputs(state: Mapping[str, np.ndarray], outputs: np.ndarray) -> State:
    """Return the tensors of a network that has only some outputs, in this order."""
    return {**state, **{key: state[key][outputs] for key in READOUT}}


def write_realnet(
    place: str | Path | Location,
    recipe: ReAlnetRecipe,
    labels: xr.Dataset,
    states: Mapping[str, State],
) -> Location:
    """Write ReAlnets, whole or not at all on a local disk.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    recipe : ReAlnetRecipe
        Images, units, origin and architecture.
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
    return write_networks(
        place,
        {f"{NETWORKS}/{name}": state for name, state in states.items()},
        labels.drop_vars("readout"),
        model_type=MODEL_TYPE,
        recipe=recipe,
        weights_sha256=hash_states(dict(states)),
    )


def open_realnet(location: Location, attrs: Mapping[str, Any]) -> ReAlnetModel:
    """Open stored ReAlnets; weights are read when they are used.

    Parameters
    ----------
    location : Location
        The store.
    attrs : mapping
        The attributes of its root.

    Raises
    ------
    ModelError
        If its recipe is not valid.
    """
    from nedx.encoding.realnet_model import ReAlnetModel, placed

    recipe, sha256 = stored_recipe(ReAlnetRecipe, location, attrs)
    ref = ModelRef(LOADER, location, recipe.model_dump_json(), sha256)
    return ReAlnetModel(placed(open_labels(location, "")), recipe, ref)
