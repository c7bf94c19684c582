"""Networks on disk: the tensors of state dicts, a recipe, and the images they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from pydantic import BaseModel

from nedx.compute.references import ModelRef
from nedx.encoding.fwrf_store import hash_arrays
from nedx.errors import CorruptStoreError, ModelError
from nedx.store.guard import GuardedStore
from nedx.store.location import Location
from nedx.store.models import ModelWriter, create_array, write_whole

State = dict[str, np.ndarray]
"""The tensors of a network by name."""
NETWORKS = "networks"
"""The group that holds those of models with several networks, each under its name."""


def write_networks(
    place: str | Path | Location,
    states: Mapping[str, Mapping[str, np.ndarray]],
    known: xr.Dataset,
    *,
    model_type: str,
    recipe: BaseModel,
    weights_sha256: str,
) -> Location:
    """Write networks of one model, whole or not at all on a local disk.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    states : mapping of str to mapping of str to ndarray
        The tensors of each network, by the group that they are written to.
    known : Dataset
        ``known_image`` and ``known_partition (known_image)``, the images that the model has seen.
    model_type : str
        What opens it.
    recipe : pydantic model
        Its recipe.
    weights_sha256 : str
        Hash of the tensors.

    Returns
    -------
    Location

    Raises
    ------
    StoreExistsError
        If something is there; nothing is changed.
    """

    def write(location: Location) -> None:
        writer = ModelWriter(location)
        for group, state in states.items():
            into = writer.root.require_group(group)
            for key, values in state.items():
                create_array(into, key, values.shape, values.dtype)[...] = values
        writer.labels(known)
        writer.finish(recipe, model_type=model_type, weights_sha256=weights_sha256)

    return write_whole(place, write)


def read_state(ref: ModelRef, name: str) -> State:
    """Read the tensors of one of several networks, as `read_network` does."""
    return read_network(ref, f"{NETWORKS}/{name}")


def hash_states(states: Mapping[str, State]) -> str:
    """Return the sha256 of the tensors of some networks."""
    return hash_arrays({f"{n}/{k}": v for n, state in states.items() for k, v in state.items()})


def read_network(ref: ModelRef, path: str) -> State:
    """Read the tensors of one group of a stored model.

    Raises
    ------
    CorruptStoreError
        If bytes differ from what was written.
    ModelError
        If a weight is NaN or infinite.
    """
    assert ref.location is not None
    store = GuardedStore(ref.location.zarr_store(), ref.location)
    group = zarr.open_group(store, path=path, mode="r", zarr_format=3)
    state = {}
    for key, array in group.arrays():
        try:
            values = np.array(array[...])
        except (RuntimeError, ValueError) as error:
            raise CorruptStoreError(
                f"the weights {key!r} of {path!r} cannot be read ({error}). Fetch the model again, "
                f"and check it: nedx verify {ref.location.url}"
            ) from error
        if not np.isfinite(values).all():
            raise ModelError(f"the weights {key!r} of {path!r} hold NaN or infinite values")
        state[key] = values
    return state
