"""Decoders on disk: the tensors of each network, and which images they were fitted to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from pydantic import ValidationError

from nedx.compute.references import ModelRef
from nedx.decoding.recipe import DecoderRecipe
from nedx.encoding.fwrf_store import hash_arrays
from nedx.encoding.opening import open_labels
from nedx.encoding.storing import COMPRESSORS, storable_labels, write_whole
from nedx.errors import CorruptStoreError, ModelError
from nedx.schema import SCHEMA_VERSION
from nedx.store.guard import GuardedStore
from nedx.store.location import Location
from nedx.store.manifest import MANIFEST, Manifest, RecordingStore

if TYPE_CHECKING:
    from nedx.decoding.model import NeuralDecoder
    from nedx.decoding.standardized import Standardized

LOADER = "nedx.decoding.storing:load"
MODEL_TYPE = "neural_decoder"
State = dict[str, np.ndarray]
"""The tensors of a network by name."""
_NETWORKS = "networks"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, ready to decode.

    Attributes
    ----------
    module : Standardized
        In evaluation mode.
    """

    module: Standardized

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.module.state_dict().values())


@dataclass(frozen=True)
class NetworkPart:
    """One network of a stored decoder.

    Parameters
    ----------
    name : str
        Which.
    """

    name: str

    def read(self, ref: ModelRef, device: str) -> LoadedNetwork:
        """Read its tensors and build it."""
        import torch

        from nedx.decoding.standardized import Standardized

        recipe = DecoderRecipe.model_validate_json(ref.recipe)
        module = Standardized(recipe.network)
        state = {k: torch.from_numpy(v) for k, v in read_state(ref, self.name).items()}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(
                f"the weights of {self.name!r} are not those of a {recipe.network.name} of this "
                f"recipe: {error}. Fetch or fit the model again"
            ) from error
        return LoadedNetwork(module.eval().to(device))


def load(ref: ModelRef, device: str, part: Hashable) -> LoadedNetwork:
    """Load one network; the loader that references to decoders name."""
    assert isinstance(part, NetworkPart)
    return part.read(ref, device)


def read_state(ref: ModelRef, name: str) -> State:
    """Read the tensors of a network.

    Raises
    ------
    CorruptStoreError
        If bytes differ from what was written.
    ModelError
        If a weight is NaN or infinite.
    """
    assert ref.location is not None
    store = GuardedStore(ref.location.zarr_store(), ref.location)
    group = zarr.open_group(store, path=f"{_NETWORKS}/{name}", mode="r", zarr_format=3)
    state = {}
    for key, array in group.arrays():
        try:
            values = np.array(array[...])
        except (RuntimeError, ValueError) as error:
            raise CorruptStoreError(
                f"the weights {key!r} of {name!r} cannot be read ({error}). Fetch the model again, "
                f"and check it: nedx verify {ref.location.url}"
            ) from error
        if not np.isfinite(values).all():
            raise ModelError(f"the weights {key!r} of {name!r} hold NaN or infinite values")
        state[key] = values
    return state


def write_decoder(
    place: str | Path | Location,
    recipe: DecoderRecipe,
    states: Mapping[str, State],
    known: xr.Dataset,
) -> Location:
    """Write a decoder, whole or not at all on a local disk.

    Parameters
    ----------
    place : path, URL or Location
        Where; must not exist.
    recipe : DecoderRecipe
        Its recipe.
    states : mapping of str to dict
        The tensors of each network.
    known : Dataset
        ``known_image`` and ``known_partition (known_image)``, the images that it has seen.

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
            storable_labels(known).to_zarr(store, mode="a", zarr_format=3, consolidated=False)
            root.attrs.put(
                {
                    "nedx_kind": "model",
                    "nedx_schema_version": SCHEMA_VERSION,
                    "nedx_status": "complete",
                    "model_type": MODEL_TYPE,
                    "recipe": json.loads(recipe.model_dump_json()),
                    "weights_sha256": hash_states(states),
                }
            )
            zarr.consolidate_metadata(store, zarr_format=3)
        location.write(MANIFEST, Manifest(store.written).to_bytes())

    return write_whole(place, write)


def hash_states(states: Mapping[str, State]) -> str:
    """Return the sha256 of the tensors of some networks."""
    return hash_arrays({f"{n}/{k}": v for n, state in states.items() for k, v in state.items()})


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


def open_decoder(location: Location, attrs: Mapping[str, Any]) -> NeuralDecoder:
    """Open a stored decoder; only metadata are read.

    Raises
    ------
    ModelError
        If its recipe is not valid.
    """
    from nedx.decoding.model import NeuralDecoder

    try:
        recipe = DecoderRecipe.model_validate(attrs["recipe"])
        sha256 = str(attrs["weights_sha256"])
    except (ValidationError, KeyError) as error:
        raise ModelError(
            f"the recipe of the decoder at {location.url} is not valid: {error}"
        ) from error
    ref = ModelRef(LOADER, location, recipe.model_dump_json(), sha256)
    return NeuralDecoder._opened(recipe, ref, open_labels(location, "", heavy=()))
