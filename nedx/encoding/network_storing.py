"""Networks on disk: the tensors of state dicts, a recipe, and the images they were trained on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from pydantic import BaseModel

from nedx.compute.references import ModelRef
from nedx.config import cache_dir
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.storing import COMPRESSORS, storable_labels, write_whole
from nedx.errors import CorruptStoreError, ModelError, StoreExistsError
from nedx.schema import SCHEMA_VERSION
from nedx.store.guard import GuardedStore
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, RecordingStore

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
        store = RecordingStore(location.zarr_store(read_only=False))
        with warnings.catch_warnings():
            # Zarr says of consolidated metadata and of strings that v3 does not specify them yet.
            warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
            root = zarr.create_group(store, zarr_format=3)
            for group, state in states.items():
                _write_state(root.require_group(group), state)
            storable_labels(known).to_zarr(store, mode="a", zarr_format=3, consolidated=False)
            root.attrs.put(
                {
                    "nedx_kind": "model",
                    "nedx_schema_version": SCHEMA_VERSION,
                    "nedx_status": "complete",
                    "model_type": model_type,
                    "recipe": json.loads(recipe.model_dump_json()),
                    "weights_sha256": weights_sha256,
                }
            )
            zarr.consolidate_metadata(store, zarr_format=3)
        location.write(MANIFEST, Manifest(store.written).to_bytes())

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


def keep(identity: str, write: Callable[[Location], object]) -> Location:
    """Put a model into the cache, where it stays until written elsewhere.

    Parameters
    ----------
    identity : str
        What decides all that is written.
    write : callable (Location)
        Writes it, where it is not there yet.

    Returns
    -------
    Location
    """
    digest = hashlib.sha256(identity.encode()).hexdigest()
    place = Location.of(cache_dir() / "models" / digest)
    if not place.exists("zarr.json"):
        os.makedirs(os.path.dirname(place.url), exist_ok=True)
        try:
            write(place)
        except (StoreExistsError, OSError):
            # Another process may have been faster.
            if not place.exists("zarr.json"):
                raise
    return place


def _write_state(group: zarr.Group, state: Mapping[str, Any]) -> None:
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
